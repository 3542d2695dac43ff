/* Sums of products for two channels. Bytes of a window are widened to 16 bits, two in a word: in each group of four the
 * first and the third, then the second and the fourth. A half of a word of weights holds 256 * v + u for a weight u of the
 * first channel and v of the second, so that one multiplication gives 256 * b + a, where a and b are the channels' sums. The
 * low bytes alone give a. The words of a window are taken in parts so short that b is below 2^23, its bias
 * included. */
/* The second channel's sum. */
static inline int32_t second_sum(int32_t joint, int32_t sum)
{
    return (int32_t)((uint32_t)joint - (uint32_t)sum) >> 8;
}

static inline int32_t joint_bias(const int32_t bias[2])
{
    return (int32_t)(256 * (uint32_t)bias[1] + (uint32_t)bias[0]);
}

/* The sums of `count` words of one window, which begin with biases. */
static void halves_window(const int32_t *x, const int32_t *w, int32_t count, const int32_t bias[2], int32_t sums[2])
{
    int32_t joint = joint_bias(bias), sum = bias[0];

    for (int32_t k = 0; k < count; k++) {
        joint = add_products(x[k], w[k], joint);
        sum = add_products(x[k], low_bytes(w[k]), sum);
    }
    sums[0] = sum;
    sums[1] = second_sum(joint, sum);
}

/* Widen `count` bytes of one window; returns the next word. */
static int32_t *widen(const uint8_t *x, int32_t count, int32_t *y)
{
    for (int32_t n = count >> 2; n > 0; n--, x += 4) {
        const uint32_t word = four_bytes(x);

        y[0] = (int32_t)(word & 0x00ff00ffu);
        y[1] = (int32_t)(word >> 8 & 0x00ff00ffu);
        y += 2;
    }
    if ((count & 3) > 0)
        *y++ = (int32_t)(x[0] | ((count & 3) > 1 ? (uint32_t)x[1] << 16 : 0u));
    if ((count & 3) == 3)
        *y++ = x[2];
    return y;
}
