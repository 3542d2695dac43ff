/* The rows of a tensor that are in memory: all of them, or the last few, where each new row overwrites the oldest. */
typedef struct {
    const uint8_t *first;
    int32_t kept;
    int32_t bytes; /* of a row */
} kept_rows;

static const uint8_t *row_of(const kept_rows *x, int32_t row)
{
    return x->first + row % x->kept * x->bytes;
}
