/* The parameters of a convolution. */
typedef struct {
    int32_t in_h, in_w, in_c;
    int32_t out_h, out_w, out_c;
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t dilation_h, dilation_w;
    int32_t pad_top, pad_left;
    int32_t groups;
    int32_t in_zero;
#ifdef PACKED
    int32_t weight_bits; /* 4 or 2: packed; 0: bytes */
#endif
    const int8_t *weight; /* [out_c][kernel_h][kernel_w][in_c / groups] */
    const int32_t *bias;  /* [out_c]; for tiles, in_zero times the sum of the channel's weights is subtracted */
    int32_t residual_zero, residual_multiplier;
    requantization to;
} conv2d_params;
