/* The rows of a thread's part of a block of images, counted over all images: at least as many as a tile has, or none. */
typedef struct {
    int32_t first, end;
} conv_part;

INLINE conv_part conv_rows_of(const conv_params *p, int32_t count, share part, int32_t rows)
{
    const int32_t all = count * p->out_h, unit = all / part.count >= rows ? 1 : rows;
    const conv_part mine = {start_of(all / unit, part) * unit,
                            is_last(part) ? all : start_of(all / unit, next(part)) * unit};

    return mine;
}

/* The start of a row in windows, residual and results. */
typedef struct {
    const uint8_t *x, *residual;
    uint8_t *y;
} conv_start;

INLINE conv_start conv_row(const conv_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y, int32_t row,
                           int32_t end)
{
    const int32_t image = row / p->out_h * IMAGE_BYTES, inside = row % p->out_h;
    const conv_start start = {x + image + inside * p->row_step,
                              end == JOINED ? residual + image + inside * p->residual_row : NULL,
                              y + image + inside * p->out_row};

    return start;
}
