/* Write the zero point before, between and after the rows. */
static void fill_border(const fill_border_params *p, uint8_t *y, int32_t count, share part)
{
    const size_t gap = (size_t)(p->row_stride - p->row_bytes);
    const int32_t after = p->first + p->rows * p->row_stride - (int32_t)gap;

    for (int32_t n = 0; n < count; n++, y += IMAGE_BYTES) {
        if (part.index == 0)
            memset(y, p->zero, (size_t)p->first);
        for (int32_t row = 1 + start_of(p->rows - 1, part); row < 1 + start_of(p->rows - 1, next(part)); row++)
            memset(y + p->first + row * p->row_stride - gap, p->zero, gap);
        if (is_last(part))
            memset(y + after, p->zero, (size_t)(p->size - after));
    }
}
