/* Up to four bytes as a number; those that are not there are 0. */
static inline uint32_t some_bytes(const uint8_t *x, int32_t count)
{
    uint32_t word = 0;

    if (count == 4)
        return four_bytes(x);
    for (int32_t i = 0; i < count; i++)
        word |= (uint32_t)x[i] << 8 * i;
    return word;
}

/* The larger of each pair of bytes: a plus what b exceeds a by, if at all. */
static inline uint32_t larger_bytes(uint32_t a, uint32_t b)
{
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP == 1
    return a + __uqsub8(b, a);
#else
    uint32_t larger = 0;

    for (int32_t i = 0; i < 32; i += 8) {
        const uint32_t p = a >> i & 255u, q = b >> i & 255u;

        larger |= (p > q ? p : q) << i;
    }
    return larger;
#endif
}
