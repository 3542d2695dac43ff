/* Slices, permutations, and the parts of concatenations and paddings. */
static void copy(const copy_params *p, const uint8_t *x, uint8_t *y)
{
    copy_place at = {{0}, 0, 0};

    do
        memcpy(y + at.to, x + at.from, (size_t)p->run);
    while (next_place(p, p->rank, &at));
}
