/* Runs of bytes in nested loops, from regular places of one tensor to regular places of another. */
typedef struct {
    int32_t rank; /* up to 6 */
    int32_t size[6];
    int32_t from_step[6], to_step[6]; /* bytes */
    int32_t run;                      /* bytes */
} copy_params;

/* Step to the next place along the first `rank` dimensions, the last of them fastest: from and to are in bytes. Returns 0
 * after the last place. */
static int next_place(const copy_params *p, int32_t rank, int32_t index[6], int32_t *from, int32_t *to)
{
    for (int32_t axis = rank - 1; axis >= 0; axis--) {
        *from += p->from_step[axis];
        *to += p->to_step[axis];
        if (++index[axis] < p->size[axis])
            return 1;
        *from -= p->from_step[axis] * p->size[axis];
        *to -= p->to_step[axis] * p->size[axis];
        index[axis] = 0;
    }
    return 0;
}
