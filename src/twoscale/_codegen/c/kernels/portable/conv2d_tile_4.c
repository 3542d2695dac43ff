#define TILE_STEP_4 \
    { \
        const int32_t b = x[apart], a = *x++, both = *w++, u = LOW_4(both); \
\
        sum0 += a * u; \
        sum1 += a * both; \
        sum2 += b * u; \
        sum3 += b * both; \
    }

/* conv2d_tile for packed weights of 4 bits. The second channel's sums are taken with both weights, which saves a shift. */
static ALONE void conv2d_tile_4(const uint8_t *const *rows, int32_t count, int32_t run, int32_t apart, const int8_t *w,
                                int32_t sums[4])
{
    int32_t sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;

    do {
        const uint8_t *x = *rows++;
        const uint8_t *const end = x + (run & ~7);

        while (x != end) {
            TILE_STEP_4
            TILE_STEP_4
            TILE_STEP_4
            TILE_STEP_4
            TILE_STEP_4
            TILE_STEP_4
            TILE_STEP_4
            TILE_STEP_4
        }
        for (int32_t rest = run & 7; rest > 0; rest--)
            TILE_STEP_4
    } while (--count > 0);
    sums[0] += sum0;
    sums[1] += (sum1 - sum0) >> 4;
    sums[2] += sum2;
    sums[3] += (sum3 - sum2) >> 4;
}
