/* The longest loop of a move. */
static void move_runs(const move_params *p, const uint8_t *x, uint8_t *y)
{
    const int32_t last = p->rank - 1, from = p->from_step[last], to = p->to_step[last];
    const int32_t size = p->size[last], run = p->run;

    for (int32_t k = 0; run == 1 && k < size; k++)
        y[k * to] = x[k * from];
    for (int32_t k = 0; run > 1 && k < size; k++)
        for (int32_t i = 0; i < run; i += 16)
            store_b(y + k * to + i, load_b(x + k * from + i), run - i);
}

/* Slices, permutations, and the parts of concatenations and paddings. */
static void move(const move_params *p, const uint8_t *x, uint8_t *y, int32_t count)
{
    for (int32_t n = 0; n < count; n++, x += IMAGE_BYTES, y += IMAGE_BYTES) {
        int32_t index[6] = {0};
        int32_t from = 0, to = 0, axis;

        do {
            move_runs(p, x + from, y + to);
            for (axis = p->rank - 2; axis >= 0; axis--) {
                from += p->from_step[axis];
                to += p->to_step[axis];
                if (++index[axis] < p->size[axis])
                    break;
                from -= p->from_step[axis] * p->size[axis];
                to -= p->to_step[axis] * p->size[axis];
                index[axis] = 0;
            }
        } while (axis >= 0);
    }
}
