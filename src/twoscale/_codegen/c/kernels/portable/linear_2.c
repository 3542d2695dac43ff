/* Fully connected layer with packed weights of 2 bits, equations (2) and (3), two outputs at a time. */
static void linear_2(const linear_params *p, const uint8_t *x, uint8_t *y)
{
    const int8_t *w = p->weight;

    for (int32_t i = 0; i < p->out_count; i += 2) {
        int32_t first = 0, joint = 0;

        for (int32_t k = 0; k < p->in_count; k += 2) {
            const int32_t a = x[k] - p->in_zero, b = k + 1 < p->in_count ? x[k + 1] - p->in_zero : 0, taps = *w++;

            first += a * LOW_2(taps) + b * LOW_2(taps >> 4);
            joint += a * LOW_4(taps) + b * (taps >> 4);
        }
        store(&p->to, y, i, i, p->bias[i] + first);
        if (i + 1 < p->out_count)
            store(&p->to, y, i + 1, i + 1, p->bias[i + 1] + ((joint - first) >> 2));
    }
}
