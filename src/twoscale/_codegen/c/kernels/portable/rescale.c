/* An operand of a concatenation, converted to the result's scale by equation (3): `outer` runs of x, written at intervals
 * into y. */
typedef struct {
    int32_t outer, run, y_step;
    int32_t in_zero;
    requantization to;
} rescale_params;

static void rescale(const rescale_params *p, const uint8_t *x, uint8_t *y)
{
    for (int32_t i = 0; i < p->outer; i++)
        for (int32_t j = 0; j < p->run; j++)
            store(&p->to, y + i * p->y_step, j, 0, x[i * p->run + j] - p->in_zero);
}
