static void copy_rows(const copy_rows_params *p, const uint8_t *x, uint8_t *y, int32_t count)
{
    for (int32_t n = 0; n < count; n++, x += IMAGE_BYTES, y += IMAGE_BYTES)
        for (int32_t row = 0; row < p->rows; row++)
            memcpy(y + row * p->to_stride, x + row * p->from_stride, (size_t)p->row_bytes);
}
