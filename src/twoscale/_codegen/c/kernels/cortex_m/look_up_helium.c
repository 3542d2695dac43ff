/* Any function of one byte, equation (10), 16 bytes at a time with Helium. The result may take the place of x. */
static WITH_HELIUM void look_up_helium(const uint8_t *x, uint8_t *y, int32_t count, const uint8_t table[256])
{
#if HAVE_HELIUM
    for (; count >= 16; count -= 16, x += 16, y += 16)
        vstrbq_u8(y, vldrbq_gather_offset_u8(table, vldrbq_u8(x)));
#endif
    for (int32_t i = 0; i < count; i++)
        y[i] = table[x[i]];
}
