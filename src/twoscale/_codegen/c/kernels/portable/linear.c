/* Fully connected layer, equations (2) and (3). */
static void linear(const linear_params *p, const uint8_t *x, uint8_t *y)
{
    for (int32_t i = 0; i < p->out_count; i++)
        store(&p->to, y, i, i, p->bias[i] + dot(x, p->weight + i * p->in_count, p->in_count, p->in_zero));
}
