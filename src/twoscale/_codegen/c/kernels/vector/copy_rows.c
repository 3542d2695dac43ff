static void copy_rows(const copy_rows_params *p, const uint8_t *x, uint8_t *y, int32_t count, share part)
{
    const int32_t first_row = start_of(p->rows, part), end_row = start_of(p->rows, next(part));

    for (int32_t n = 0; n < count; n++, x += IMAGE_BYTES, y += IMAGE_BYTES)
        for (int32_t row = first_row; row < end_row; row++)
            memcpy(y + row * p->to_stride, x + row * p->from_stride, (size_t)p->row_bytes);
}
