/* Any function of one byte, equation (10). The result may take the place of x. */
static void look_up(const uint8_t *x, uint8_t *y, int32_t count, const uint8_t table[256])
{
    for (int32_t i = 0; i < count; i++)
        y[i] = table[x[i]];
}
