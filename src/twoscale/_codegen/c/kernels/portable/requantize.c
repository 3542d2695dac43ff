/* How accumulators become the bytes of a tensor. Without multipliers they stay int32. */
typedef struct {
    const int32_t *multiplier; /* in units of 2^-shift, below 2^24; NULL: none */
    int32_t per_channel;       /* 1: one multiplier per channel; 0: one for all */
    int32_t shift;
    int32_t is_narrow;         /* 1: products with multipliers, and sums with them, fit 32 bits */
#ifdef FIXED_POINT
    const int8_t *exponent; /* of mantissas in `multiplier`: TensorFlow Lite's arithmetic; as many */
#endif
    int32_t zero, lo, hi;
} requantization;

/* A right shift of a negative number must round towards minus infinity, as it does with all common compilers. */
typedef char arithmetic_shift_needed[((int32_t)-3 >> 1) == -2 ? 1 : -1];

/* clamp(zero + RNE(value / 2^shift), lo, hi); |value| < 2^62. What is added is one half, less 1 if the floor
 * is even: a tie is rounded up only from an odd floor, that is, to the even neighbour. */
static uint8_t requantize(const requantization *to, int64_t value)
{
    const int64_t almost_half = ((int64_t)1 << (to->shift - 1)) - 1;
    const int64_t floor_is_odd = (value >> to->shift) & 1;
    const int64_t q = to->zero + ((value + almost_half + floor_is_odd) >> to->shift);

    return (uint8_t)(q < to->lo ? to->lo : q > to->hi ? to->hi : q);
}
