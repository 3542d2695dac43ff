/* Clamp to [lo, hi], such as a ReLU that could not be merged into another layer. The result may take the place of x. */
static void clamp(const uint8_t *x, uint8_t *y, int32_t count, uint8_t lo, uint8_t hi)
{
    for (int32_t i = 0; i < count; i++)
        y[i] = x[i] < lo ? lo : x[i] > hi ? hi : x[i];
}
