/* From int8 integers to the bytes that the kernels use: 128 is added. */
static void from_int8(const int8_t *x, uint8_t *y, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        y[i] = (uint8_t)(x[i] + 128);
}
