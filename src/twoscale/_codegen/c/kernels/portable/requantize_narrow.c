/* requantize for a 32-bit number, for narrow layers: |value| + 2^(shift - 1) < 2^31. */
static uint8_t requantize_narrow(const requantization *to, int32_t value)
{
    const int32_t almost_half = ((int32_t)1 << (to->shift - 1)) - 1;
    const int32_t floor_is_odd = (value >> to->shift) & 1;
    const int32_t q = to->zero + ((value + almost_half + floor_is_odd) >> to->shift);

    return (uint8_t)(q < to->lo ? to->lo : q > to->hi ? to->hi : q);
}
