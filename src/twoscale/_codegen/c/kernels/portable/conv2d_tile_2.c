#define TILE_STEP_2(half) \
    { \
        const int32_t b = x[apart], a = *x++, both = half, u = LOW_2(both); \
\
        sum0 += a * u; \
        sum1 += a * both; \
        sum2 += b * u; \
        sum3 += b * both; \
    }
#define TILE_STEPS_2 \
    { \
        const int32_t taps = *w++; \
\
        TILE_STEP_2(LOW_4(taps)) \
        TILE_STEP_2(taps >> 4) \
    }

/* conv2d_tile for packed weights of 2 bits. */
static ALONE void conv2d_tile_2(const uint8_t *const *rows, int32_t count, int32_t run, int32_t apart, const int8_t *w,
                                int32_t sums[4])
{
    int32_t sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;

    do {
        const uint8_t *x = *rows++;
        const uint8_t *const end = x + (run & ~7);

        while (x != end) {
            TILE_STEPS_2
            TILE_STEPS_2
            TILE_STEPS_2
            TILE_STEPS_2
        }
        for (int32_t rest = run & 7; rest > 1; rest -= 2)
            TILE_STEPS_2
        if ((run & 1) != 0) {
            TILE_STEP_2(LOW_4(*w))
            w++;
        }
    } while (--count > 0);
    sums[0] += sum0;
    sums[1] += (sum1 - sum0) >> 2;
    sums[2] += sum2;
    sums[3] += (sum3 - sum2) >> 2;
}
