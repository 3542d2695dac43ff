/* int8 integers as the bytes that the kernels know: 128 added. */
static void from_int8(const int8_t *x, uint8_t *y, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        y[i] = (uint8_t)(x[i] + 128);
}
