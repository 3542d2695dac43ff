/* Slices, permutations, and the parts of concatenations and paddings. */
static void copy(const copy_params *p, const uint8_t *x, uint8_t *y)
{
    int32_t index[6] = {0};
    int32_t from = 0, to = 0;

    do
        memcpy(y + to, x + from, (size_t)p->run);
    while (next_place(p, p->rank, index, &from, &to));
}
