/* A row of a convolution with Helium, equations (2) and (3); with a residual (2) and (7b). Rows of x are kept as signed
 * bytes, with the taps outside the image. */
typedef struct {
    int8_t bytes[HELIUM_ROWS_BYTES]; /* row r of x is kept in place r % kernel_h; a row outside the image follows them */
    int32_t next;                    /* row of x to be read */
} helium_rows;

/* Keep a row of x, or one outside the image if x is NULL. */
static void helium_keep(const conv2d_helium_params *p, const uint8_t *x, int8_t *to)
{
    const int32_t columns = p->columns > 0 ? p->columns : (p->row_bytes - 16) / p->in_c;
    const int32_t fit = columns - p->pad_left, count = x == NULL ? 0 : p->in_w < fit ? p->in_w : fit;
    const int32_t bytes = p->columns > 0 ? 16 : p->in_c, before = p->pad_left * bytes, after = before + count * bytes;

    for (int32_t i = 0; i < p->in_c; i += bytes, to += columns * bytes) {
        memset(to, p->in_zero - 128, (size_t)before);
        if (count > 0 && p->columns > 0)
            helium_columns_of(x + i, count, p->in_c, to + before);
        else if (count > 0)
            helium_bytes(x, after - before, to + before, 16);
        memset(to + after, p->in_zero - 128, (size_t)(columns * bytes - after));
    }
}

/* Copy four windows, 16 bytes of each in turn. */
static void helium_copy_windows(const conv2d_helium_params *p, const int8_t *const *places, int32_t column, int8_t *windows)
{
    const int32_t run = p->kernel_w * p->in_c;
    int8_t one[HELIUM_WINDOW];

    for (int32_t i = 0; i < 4; i++) {
        for (int32_t k = 0; k < p->kernel_h; k++)
            helium_copy(places[k] + (column + i) * p->stride_w * p->in_c, run, one + k * run, 16);
        helium_copy(one, 16 * p->sixteens, windows + 16 * i, 64);
    }
}

/* Begin with the row of x that is needed first. */
static void helium_begin(const conv2d_helium_params *p, int32_t row, helium_rows *kept)
{
    kept->next = row * p->stride_h < p->pad_top ? 0 : row * p->stride_h - p->pad_top;
    if (p->row_bytes > 0)
        helium_keep(p, NULL, kept->bytes + p->kernel_h * p->row_bytes);
}

static void conv2d_helium_kept(const conv2d_helium_params *p, const kept_rows *x, const uint8_t *joins, uint8_t *y, int32_t row,
                               helium_rows *kept)
{
    const int32_t item = p->to.multiplier == NULL ? 4 : 1, even = p->out_c + (p->out_c & 1), apart = item * even;
    const int32_t top = row * p->stride_h - p->pad_top, single = p->kernel_h * p->kernel_w == 1;
    const uint8_t *const x_row = single ? row_of(x, top) : NULL;
    const int8_t *places[HELIUM_PLACES] = {NULL};
    int8_t windows[HELIUM_BYTES];
    uint8_t some[HELIUM_OUTPUTS], joined[HELIUM_OUTPUTS];
    int32_t count = 0;

    for (; !single && kept->next < top + p->kernel_h && kept->next < p->in_h; kept->next++)
        helium_keep(p, row_of(x, kept->next), kept->bytes + kept->next % p->kernel_h * p->row_bytes);
    for (int32_t k = 0; !single && k < p->kernel_h; k++) {
        const int32_t place = top + k < 0 || top + k >= p->in_h ? p->kernel_h : (top + k) % p->kernel_h;

        places[count++] = kept->bytes + place * p->row_bytes;
        for (int32_t i = 16; p->columns > 0 && i < p->in_c; i += 16, count++)
            places[count] = places[count - 1] + 16 * p->columns;
    }
    for (int32_t column = 0; column < p->out_w; column += 4) {
        const int32_t pixels = p->out_w - column < 4 ? p->out_w - column : 4, whole = pixels == 4 && even == p->out_c;
        uint8_t *const all = y + item * column * p->out_c, *const to = whole ? all : some;
        const uint8_t *from = joins == NULL ? NULL : joins + column * p->out_c;

        if (!whole && joins != NULL) {
            memset(joined, 0, sizeof joined);
            for (int32_t i = 0; i < pixels; i++)
                memcpy(joined + i * even, from + i * p->out_c, (size_t)p->out_c);
            from = joined;
        }
        for (int32_t i = 0; single && i < 4; i++) {
            const int32_t at = column + i < p->out_w ? column + i : p->out_w - 1;

            helium_bytes(x_row + at * p->stride_w * p->in_c, p->in_c, windows + 16 * i, 64);
        }
        if (p->columns == 0 && !single)
            helium_copy_windows(p, places, column, windows);
        if (p->columns == 0 && p->in_halves)
            helium_windows(p, windows, to, from, apart);
        else if (p->columns == 0)
            helium_other_windows(p, windows, to, from, apart);
        else if (p->stride_w == 1)
            helium_columns(p, places, count, to, from, apart);
        else
            helium_columns_apart(p, places, count, to, from, apart);
        for (int32_t k = 0; p->columns > 0 && k < count; k++)
            places[k] += 64 * p->stride_w;
        for (int32_t i = 0; !whole && i < pixels; i++)
            memcpy(all + item * i * p->out_c, some + i * apart, (size_t)(item * p->out_c));
    }
}
