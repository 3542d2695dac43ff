/* Fully connected layer with the DSP extension, equations (2) and (3), two outputs at a time. */
typedef struct {
    int32_t in_count, out_count;
    int32_t words, part;
    const int32_t *weight; /* [out_count / 2, rounded up][words] */
    const int32_t *bias;   /* [out_count, even], without the zero point times the sum of the weights */
    requantization to;
} linear_halves_params;

static void linear_halves(const linear_halves_params *p, const uint8_t *x, uint8_t *y)
{
    int32_t words[HALVES_WORDS];

    for (int32_t *word = widen(x, p->in_count, words); word != words + p->words; word++)
        *word = 0;
    for (int32_t i = 0; i < p->out_count; i += 2) {
        const int32_t none[2] = {0, 0}, *bias = p->bias + i;
        int32_t first = 0, second = 0;

        for (int32_t k = 0; k < p->words; k += p->part) {
            int32_t sums[2];

            halves_window(words + k, p->weight + i / 2 * p->words + k,
                          p->words - k < p->part ? p->words - k : p->part, bias, sums);
            first += sums[0];
            second += sums[1];
            bias = none;
        }
        store(&p->to, y, i, i, first);
        if (i + 1 < p->out_count)
            store(&p->to, y, i + 1, i + 1, second);
    }
}
