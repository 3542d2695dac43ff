/* Fully connected layer with packed weights of 4 bits, equations (2) and (3), two outputs at a time. */
static void linear_4(const linear_params *p, const uint8_t *x, uint8_t *y)
{
    const int8_t *w = p->weight;

    for (int32_t i = 0; i < p->out_count; i += 2) {
        int32_t first = 0, joint = 0;

        for (int32_t k = 0; k < p->in_count; k++) {
            const int32_t a = x[k] - p->in_zero, both = *w++;

            first += a * LOW_4(both);
            joint += a * both;
        }
        store(&p->to, y, i, i, p->bias[i] + first);
        if (i + 1 < p->out_count)
            store(&p->to, y, i + 1, i + 1, p->bias[i + 1] + ((joint - first) >> 4));
    }
}
