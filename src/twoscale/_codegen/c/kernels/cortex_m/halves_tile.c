#define HALVES_STEP \
    { \
        const int32_t both = *w++, first = low_bytes(both); \
        uint64_t pair = x[0]; /* the words of two windows */ \
\
        joint0 = add_products((int32_t)(uint32_t)pair, both, joint0); \
        joint1 = add_products((int32_t)(pair >> 32), both, joint1); \
        sum0 = add_products((int32_t)(uint32_t)pair, first, sum0); \
        sum1 = add_products((int32_t)(pair >> 32), first, sum1); \
        pair = x[1]; \
        x += 2; \
        joint2 = add_products((int32_t)(uint32_t)pair, both, joint2); \
        joint3 = add_products((int32_t)(pair >> 32), both, joint3); \
        sum2 = add_products((int32_t)(uint32_t)pair, first, sum2); \
        sum3 = add_products((int32_t)(pair >> 32), first, sum3); \
    }

/* The sums of `count` words, a multiple of 8, of each of four windows, two pairs of words at a time: sums[2 * window + channel]. They begin
 * with biases. */
static IN_REGISTERS void halves_tile(const uint64_t *x, const int32_t *w, int32_t count, const int32_t bias[2],
                                     int32_t sums[8])
{
    int32_t sum0 = bias[0], sum1 = sum0, sum2 = sum0, sum3 = sum0;
    int32_t joint0 = joint_bias(bias), joint1 = joint0, joint2 = joint0, joint3 = joint0;
    const int32_t *const end = w + count;

    do {
        HALVES_STEP
        HALVES_STEP
        HALVES_STEP
        HALVES_STEP
        HALVES_STEP
        HALVES_STEP
        HALVES_STEP
        HALVES_STEP
    } while (w != end);
    sums[0] = sum0;
    sums[1] = second_sum(joint0, sum0);
    sums[2] = sum1;
    sums[3] = second_sum(joint1, sum1);
    sums[4] = sum2;
    sums[5] = second_sum(joint2, sum2);
    sums[6] = sum3;
    sums[7] = second_sum(joint3, sum3);
}
