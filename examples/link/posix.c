/* The board's part of NAME_link.h on Linux and macOS: bytes come from standard input and go to standard output.
 *
 *     twoscale export net.onnx -o firmware --name net --link
 *     cc -O2 -DNET_TRACE -Ifirmware -o board firmware/net.c firmware/net_link.c examples/link/posix.c
 *     socat TCP-LISTEN:4000,reuseaddr EXEC:./board
 *     twoscale verify net.onnx --executors reference,remote:localhost:4000
 */
#include "net_link.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/select.h>
#include <unistd.h>

int net_link_get(void)
{
    struct timeval second = {1, 0};
    unsigned char byte;
    fd_set input;

    fflush(stdout);
    FD_ZERO(&input);
    FD_SET(0, &input);
    if (select(1, &input, NULL, NULL, &second) <= 0)
        return -1;
    if (read(0, &byte, 1) != 1)
        exit(0); /* the computer has gone */
    return byte;
}

void net_link_put(uint8_t byte)
{
    putchar(byte);
}

uint32_t net_link_cycles(void)
{
    return 0;
}

int main(void)
{
    for (;;)
        net_link_serve();
}
