#ifndef HAS_LOOK_UP /* the instruction set looks up many at a time */
typedef struct {
    const uint8_t *at;
} table256; /* a function of a byte */

INLINE table256 load_table(const uint8_t *from)
{
    const table256 table = {from};

    return table;
}

INLINE void look_up(table256 table, const uint8_t *x, uint8_t *y, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        y[i] = table.at[x[i]];
}

#endif

/* Any function of one byte, equation (10). */
static void look_up_rows(const look_up_rows_params *p, const uint8_t *x, uint8_t *y, int32_t count, share part)
{
    const int32_t first_row = start_of(p->rows, part), end_row = start_of(p->rows, next(part));
    const table256 table = load_table(p->table);

    for (int32_t n = 0; n < count; n++, x += IMAGE_BYTES, y += IMAGE_BYTES)
        for (int32_t row = first_row; row < end_row; row++)
            look_up(table, x + row * p->in_row, y + row * p->out_row, p->row_bytes);
}
