/* Write one accumulator: as a byte by equation (3), or unchanged as int32. */
static void store(const requantization *to, uint8_t *y, int32_t index, int32_t channel, int32_t acc)
{
    if (to->multiplier == NULL)
        memcpy(y + 4 * index, &acc, 4);
#ifdef FIXED_POINT
    else if (to->exponent != NULL)
        y[index] = requantize_fixed(to, acc, channel);
#endif
    else if (to->is_narrow)
        y[index] = requantize_narrow(to, acc * multiplier_of(to, channel));
    else
        y[index] = requantize(to, (int64_t)acc * multiplier_of(to, channel));
}
