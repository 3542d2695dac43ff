/* TensorFlow Lite's requantization, equation (18): value * mantissa * 2^(exponent - 31), rounded twice. The high half of
 * the doubled product is rounded with ties up, the shift to the right with ties away from zero. */
static int32_t fixed_point(int32_t value, int32_t mantissa, int32_t exponent)
{
    const int32_t left = exponent > 0 ? exponent : 0, right = exponent > 0 ? 0 : -exponent;
    const int64_t product = (int64_t)value * ((int32_t)1 << left) * mantissa;
    const int32_t high = (int32_t)((product + ((int64_t)1 << 30)) >> 31);
    const int32_t mask = (int32_t)(((int64_t)1 << right) - 1);

    return (int32_t)((int64_t)high >> right) + ((high & mask) > (mask >> 1) + (high < 0));
}

/* clamp(zero + fixed_point(value), lo, hi) with a channel's factor. */
static uint8_t requantize_fixed(const requantization *to, int32_t value, int32_t channel)
{
    const int32_t factor = channel * to->per_channel;
    const int64_t q = (int64_t)to->zero + fixed_point(value, to->multiplier[factor], to->exponent[factor]);

    return (uint8_t)(q < to->lo ? to->lo : q > to->hi ? to->hi : q);
}
