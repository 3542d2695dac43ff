#define PACKED_TAP(number) \
    { \
        const int32_t b = x[apart], a = *x++, both = (number), u = bits == 4 ? LOW_4(both) : LOW_2(both); \
\
        sum0 += a * u; \
        sum1 += a * both; \
        sum2 += b * u; \
        sum3 += b * both; \
    }
#define PACKED_TAPS \
    { \
        const int32_t taps = *w++; \
\
        PACKED_TAP(bits == 4 ? taps : LOW_4(taps)) \
        PACKED_TAP(bits == 4 ? *w++ : taps >> 4) \
    }

/* conv2d_tile for packed weights. `bits` is a constant where this is inlined. The second channel's sums are taken with both
 * weights, which saves a shift. */
static INLINED void conv2d_tile_packed(const uint8_t *const *rows, int32_t count, int32_t run, int32_t apart, const int8_t *w,
                                       int32_t sums[4], int32_t bits)
{
    int32_t sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;

    do {
        const uint8_t *x = *rows++;
        const uint8_t *const end = x + (run & ~7);

        while (x != end) {
            PACKED_TAPS
            PACKED_TAPS
            PACKED_TAPS
            PACKED_TAPS
        }
        for (int32_t rest = run & 7; rest > 1; rest -= 2)
            PACKED_TAPS
        if ((run & 1) != 0) {
            PACKED_TAP(bits == 4 ? *w : LOW_4(*w))
            w++;
        }
    } while (--count > 0);
    sums[0] += sum0;
    sums[1] += (sum1 - sum0) >> bits;
    sums[2] += sum2;
    sums[3] += (sum3 - sum2) >> bits;
}
