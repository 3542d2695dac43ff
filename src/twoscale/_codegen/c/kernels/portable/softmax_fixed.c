/* TensorFlow Lite's softmax, equation (21), over `count` values that are `inner` bytes apart. */
typedef struct {
    int32_t outer, count, inner;
    const int32_t *table; /* [256]: exponentials in units of 2^-31 */
} softmax_fixed_params;

/* a * b / 2^31, rounded with ties up. */
static int32_t high_product(int32_t a, int32_t b)
{
    return (int32_t)(((int64_t)a * b + ((int64_t)1 << 30)) >> 31);
}

/* value / 2^shift for a value that is not negative, rounded with ties up. */
static int32_t rounded(int32_t value, int32_t shift)
{
    return (int32_t)(((int64_t)value + ((int64_t)1 << shift >> 1)) >> shift);
}

static void softmax_fixed(const softmax_fixed_params *p, const uint8_t *x, uint8_t *y)
{
    for (int32_t i = 0; i < p->outer * p->inner; i++) {
        const int32_t first = i / p->inner * p->inner * p->count + i % p->inner;
        int32_t total = 0, top = 0, headroom = 0, half, inverse;

        for (int32_t j = 0; j < p->count; j++)
            if (x[first + j * p->inner] > top)
                top = x[first + j * p->inner];
        for (int32_t j = 0; j < p->count; j++)
            total += rounded(p->table[top - x[first + j * p->inner]], 12);
        while (((uint32_t)total << headroom & 0x80000000u) == 0)
            headroom++;
        half = (int32_t)((uint32_t)total << headroom >> 1); /* of the denominator, in [1, 2) */
        inverse = 1515870810 + high_product(half, -1010580540); /* 48/17 - 32/17 * half */
        for (int32_t k = 0; k < 3; k++)
            inverse += 4 * high_product(inverse, ((int32_t)1 << 29) - high_product(half, inverse));
        inverse = inverse >= (int32_t)1 << 30 ? INT32_MAX : 2 * inverse;
        for (int32_t j = 0; j < p->count; j++) {
            const int32_t product = high_product(inverse, p->table[top - x[first + j * p->inner]]);
            const int32_t q = rounded(product, 35 - headroom);

            y[first + j * p->inner] = (uint8_t)(q > 255 ? 255 : q);
        }
    }
}
