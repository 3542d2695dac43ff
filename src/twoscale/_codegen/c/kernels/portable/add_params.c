/* The parameters of a sum. */
typedef struct {
    int32_t count;
    int32_t a_zero, a_multiplier;
    int32_t b_zero, b_multiplier;
    requantization to;
} add_params;
