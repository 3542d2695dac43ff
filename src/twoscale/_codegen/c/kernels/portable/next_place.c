/* Runs of bytes in nested loops, from regular places of one tensor to regular places of another. */
typedef struct {
    int32_t rank; /* up to 6 */
    int32_t size[6];
    int32_t from_step[6], to_step[6]; /* bytes */
    int32_t run;                      /* bytes */
} copy_params;

typedef struct {
    int32_t index[6];
    int32_t from, to; /* bytes */
} copy_place;

/* Step to the next place along the first `rank` dimensions, the last of them fastest. Returns 0 after the last place. */
static int next_place(const copy_params *p, int32_t rank, copy_place *at)
{
    for (int32_t axis = rank - 1; axis >= 0; axis--) {
        at->from += p->from_step[axis];
        at->to += p->to_step[axis];
        if (++at->index[axis] < p->size[axis])
            return 1;
        at->from -= p->from_step[axis] * p->size[axis];
        at->to -= p->to_step[axis] * p->size[axis];
        at->index[axis] = 0;
    }
    return 0;
}
