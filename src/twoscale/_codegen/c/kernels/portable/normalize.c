/* Norms by the statistics of the image, equation (17). The loops are those over groups of values that are normalized
 * together, and those within a group. */
typedef struct {
    int32_t groups[3], group_step[3], group_channel[3]; /* sizes, and steps of values and of gains */
    int32_t within[3], within_step[3], within_channel[3];
    int32_t count; /* of values in a group */
    int32_t centered;
    int64_t epsilon;
    int32_t shift; /* t: square roots count 2^-t */
    int32_t in_zero;
    const int32_t *gain, *bias;
    requantization to; /* of numbers that count 2^-30 */
} normalize_params;

/* The square root, rounded down, of a number below 2^62. */
static int64_t square_root(int64_t value)
{
    int64_t root = 0;

    for (int64_t bit = (int64_t)1 << 30; bit > 0; bit >>= 1)
        if ((root + bit) * (root + bit) <= value)
            root += bit;
    return root;
}

static void normalize_group(const normalize_params *p, const uint8_t *x, uint8_t *y, int32_t channel)
{
    const int32_t shift = 28 - p->shift;
    const int64_t almost_half = ((int64_t)1 << (shift - 1)) - 1;
    int64_t total = 0, squares = 0, reciprocal;

    for (int32_t i = 0; i < p->within[0]; i++) {
        for (int32_t j = 0; j < p->within[1]; j++) {
            for (int32_t k = 0; k < p->within[2]; k++) {
                const int32_t value =
                    x[i * p->within_step[0] + j * p->within_step[1] + k * p->within_step[2]] - p->in_zero;

                total += value;
                squares += (int64_t)value * value;
            }
        }
    }
    total *= p->centered;
    reciprocal = ((int64_t)1 << 42) /
                 square_root((p->count * squares - total * total + p->epsilon) * ((int64_t)1 << 2 * p->shift));
    for (int32_t i = 0; i < p->within[0]; i++) {
        for (int32_t j = 0; j < p->within[1]; j++) {
            for (int32_t k = 0; k < p->within[2]; k++) {
                const int32_t at = i * p->within_step[0] + j * p->within_step[1] + k * p->within_step[2];
                const int32_t of =
                    channel + i * p->within_channel[0] + j * p->within_channel[1] + k * p->within_channel[2];
                const int64_t product = ((int64_t)p->count * (x[at] - p->in_zero) - total) * reciprocal;
                const int64_t normalized = (product + almost_half + ((product >> shift) & 1)) >> shift;

                y[at] = requantize(&p->to, normalized * p->gain[of] + p->bias[of] * (int64_t)16384);
            }
        }
    }
}

static void normalize(const normalize_params *p, const uint8_t *x, uint8_t *y)
{
    for (int32_t i = 0; i < p->groups[0]; i++) {
        for (int32_t j = 0; j < p->groups[1]; j++) {
            for (int32_t k = 0; k < p->groups[2]; k++) {
                const int32_t at = i * p->group_step[0] + j * p->group_step[1] + k * p->group_step[2];

                normalize_group(p, x + at, y + at,
                                i * p->group_channel[0] + j * p->group_channel[1] + k * p->group_channel[2]);
            }
        }
    }
}
