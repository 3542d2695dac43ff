/* Softmax, equation (15), over `count` values that are `inner` bytes apart. */
typedef struct {
    int32_t outer, count, inner;
    const uint16_t *table; /* [256]; the first entry is the largest, at most 2^15 */
    int32_t shift;
    int32_t zero, lo, hi;
} softmax_params;

static void softmax(const softmax_params *p, const uint8_t *x, uint8_t *y)
{
    for (int32_t i = 0; i < p->outer * p->inner; i++) {
        const int32_t first = i / p->inner * p->inner * p->count + i % p->inner;
        uint32_t total = 0;
        int32_t top = 0;

        for (int32_t j = 0; j < p->count; j++)
            if (x[first + j * p->inner] > top)
                top = x[first + j * p->inner];
        for (int32_t j = 0; j < p->count; j++)
            total += p->table[top - x[first + j * p->inner]];
        for (int32_t j = 0; j < p->count; j++) {
            const uint32_t scaled = (uint32_t)p->table[top - x[first + j * p->inner]] << p->shift;
            const uint32_t floor = scaled / total;
            const uint32_t twice = 2 * (scaled - floor * total); /* of the rest: below 2^32 */
            const int32_t q = p->zero + (int32_t)(floor + (twice > total || (twice == total && floor % 2)));

            y[first + j * p->inner] = (uint8_t)(q < p->lo ? p->lo : q > p->hi ? p->hi : q);
        }
    }
}
