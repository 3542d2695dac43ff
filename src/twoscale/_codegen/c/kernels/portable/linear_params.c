/* The parameters of a fully connected layer. */
typedef struct {
    int32_t in_count, out_count;
    int32_t in_zero;
    const int8_t *weight; /* [out_count][in_count] */
    const int32_t *bias;  /* [out_count] */
    requantization to;
} linear_params;
