/* A plugin for QEMU that counts the instructions of a guest and writes their number to a file at its end:
 *
 *     qemu-system-arm -plugin ./qemu_count.so,out=count.txt ...
 *
 * With each=FILE it also writes, for each block of instructions that was translated, its address, the number of its
 * instructions and how often it ran.
 *
 * The declarations are those of QEMU's plugin API, version 1, whose header Debian does not ship. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct block {
    struct block *next;
    uint64_t address, size, runs;
};
typedef void on_block(qemu_plugin_id_t id, struct qemu_plugin_tb *block);
typedef void on_run(unsigned int cpu, void *context);
typedef void on_exit_of(qemu_plugin_id_t id, void *context);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, on_block *callback);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, on_run *callback, int flags, void *context);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, on_exit_of *callback, void *context);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *block);

#define EXPORTED __attribute__((visibility("default")))

EXPORTED int qemu_plugin_version = 1;

static uint64_t instructions;
static char *file, *file_of_blocks;
static struct block *blocks;

static void block_runs(unsigned int cpu, void *context)
{
    struct block *const block = context;

    (void)cpu;
    instructions += block->size;
    block->runs++;
}

static void block_translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    struct block *const added = malloc(sizeof *added);

    (void)id;
    if (added == NULL)
        abort();
    *added = (struct block){blocks, qemu_plugin_tb_vaddr(block), qemu_plugin_tb_n_insns(block), 0};
    blocks = added;
    qemu_plugin_register_vcpu_tb_exec_cb(block, block_runs, 0, added);
}

static void guest_ended(qemu_plugin_id_t id, void *context)
{
    FILE *out = file == NULL ? NULL : fopen(file, "w");

    (void)id, (void)context;
    if (out != NULL) {
        fprintf(out, "%" PRIu64 "\n", instructions);
        fclose(out);
    }
    out = file_of_blocks == NULL ? NULL : fopen(file_of_blocks, "w");
    if (out != NULL) {
        for (const struct block *block = blocks; block != NULL; block = block->next)
            fprintf(out, "%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", block->address, block->size, block->runs);
        fclose(out);
    }
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int count, char **arguments)
{
    (void)info;
    for (int i = 0; i < count; i++)
        if (strncmp(arguments[i], "out=", 4) == 0)
            file = strdup(arguments[i] + 4);
        else if (strncmp(arguments[i], "each=", 5) == 0)
            file_of_blocks = strdup(arguments[i] + 5);
    qemu_plugin_register_vcpu_tb_trans_cb(id, block_translated);
    qemu_plugin_register_atexit_cb(id, guest_ended, NULL);
    return 0;
}
