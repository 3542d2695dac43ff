/* Copy runs of bytes from one regular pattern of places to another, the last dimension fastest: slices,
 * permutations, and the parts of concatenations and paddings. */
typedef struct {
    int32_t rank; /* up to 6 */
    int32_t size[6];
    int32_t from_step[6], to_step[6]; /* bytes */
    int32_t run;                      /* bytes */
} copy_params;

static void copy(const copy_params *p, const uint8_t *x, uint8_t *y)
{
    int32_t index[6] = {0};
    int32_t from = 0, to = 0, axis;

    do {
        memcpy(y + to, x + from, (size_t)p->run);
        for (axis = p->rank - 1; axis >= 0; axis--) {
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
