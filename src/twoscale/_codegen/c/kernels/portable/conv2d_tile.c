#define TILE_STEP \
    { \
        const int32_t v = w[other], u = *w++; \
        int32_t a = x[apart]; \
\
        sum2 += a * u; /* one value of x at a time: a Cortex-M0 has eight registers for operands */ \
        sum3 += a * v; \
        a = *x++; \
        sum0 += a * u; \
        sum1 += a * v; \
    }

/* The sums of two windows, whose rows are `apart` bytes apart, and two channels, whose weights are `other` bytes apart.
 * A window has `count` rows of `run` bytes. */
static ALONE void conv2d_tile(const uint8_t *const *rows, int32_t count, int32_t run, int32_t apart, const int8_t *w,
                              int32_t other, int32_t sums[4])
{
    int32_t sum0 = sums[0], sum1 = sums[1], sum2 = sums[2], sum3 = sums[3];

    do {
        const uint8_t *x = *rows++;
        const uint8_t *const end = x + (run & ~7);

        while (x != end) {
            TILE_STEP
            TILE_STEP
            TILE_STEP
            TILE_STEP
            TILE_STEP
            TILE_STEP
            TILE_STEP
            TILE_STEP
        }
        for (int32_t rest = run & 7; rest > 0; rest--)
            TILE_STEP
    } while (--count > 0);
    sums[0] = sum0;
    sums[1] = sum1;
    sums[2] = sum2;
    sums[3] = sum3;
}
