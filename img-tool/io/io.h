/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * io, the commands of qemu-io: what its files share. A command is one struct, registered by one line; io.c reads lines
 * and runs them, one after the other, in one coroutine.
 */
#pragma once

#include "../image.h"

#include <base/compiler.h>
#include <stdio.h>

/* The image that the commands work on. */
struct io_session {
    struct blk_front *front; /* NULL: none is open */
    char *name;              /* how it was opened, for reopen; NULL: by options alone */
    struct opts *options;
    struct image_source source;
    bool misalign; /* -m: buffers are not aligned */
    unsigned aio_in_flight;
    struct co *aio_waiting; /* aio_flush */
};

enum io_command_flags {
    IO_NO_FILE = 1u << 0, /* works if no image is open */
    IO_WRITES = 1u << 1,  /* needs one that is open for writing */
};
/* What a command returns: 0, a negative errno (the program's exit status is then 1), or IO_QUIT. */
enum { IO_QUIT = 1 };

struct io_command {
    const char *name, *alias;
    unsigned flags;
    int min_args, max_args; /* without the name; max -1: any number */
    const char *args;       /* as shown in help; NULL: none */
    const char *summary;
    const char *help; /* more; NULL: none */
    /* argv[0] is the name. Has reported its error. */
    coroutine_fn int (*co_run)(struct io_session *session, int argc, char **argv);
    const struct io_command *next; /* io.c's */
};
void io_command_register(struct io_command *command);
#define IO_COMMAND(command) \
    __attribute__((constructor)) static void register_##command(void) { io_command_register(&command); }

/* Prints the command's one-line usage; returns -EINVAL. */
int io_usage(const char *name);
int io_help(const char *name); /* NULL: all commands */

/* ---- session.c ---- */

/* name may be NULL if options say it all. Takes `options`. 0 or -EINVAL after reporting. */
coroutine_fn int io_co_open(struct io_session *session, const char *name, struct opts *options,
                            const struct image_source *source);
coroutine_fn int io_co_close(struct io_session *session);
/* Until every aio_ command has completed. */
coroutine_fn void io_co_wait_for_aio(struct io_session *session);
/* reopen.c: the open image becomes what `source` says of flags, and options (maybe with the roles of children in
 * front) say beside. */
coroutine_fn int io_co_reopen(struct io_session *session, const struct image_source *source, const struct opts *options,
                              struct error **errp);
/* Words of -t, -d, -i into *source, of -o into *options; false after reporting. */
bool io_cache_arg(struct image_source *source, const char *text);
bool io_discard_arg(struct image_source *source, const char *text);
bool io_aio_arg(struct image_source *source, const char *text);
bool io_options_arg(struct opts *options, const char *text);

/* ---- report.c ---- */

enum { IO_MAX_LENGTH = 0x7ffffe00 }; /* 2^31 less a sector */

/* Sizes and patterns; false after reporting on standard output, as qemu-io does. */
bool io_number(const char *text, uint64_t *out);
/* VM state is asked for by whole sectors: reports what is not, and returns false. */
bool io_sectors(uint64_t offset, uint64_t length);
bool io_length(const char *text, uint64_t *out); /* at most IO_MAX_LENGTH */
bool io_pattern(const char *text, uint8_t *out);

/* "64 KiB", "1.500 MiB", "3 bytes". */
char *io_size_text(double size, char *buf, size_t buf_size);

struct io_report {
    const char *verb; /* "read", "wrote", "discard" */
    bool quiet, csv;
    uint64_t start_ns;
    uint64_t offset, length;
};
/* Prints what was done and how fast. */
void io_report(const struct io_report *report);
void io_dump(const uint8_t *data, uint64_t offset, uint64_t length);
/* Whether length bytes are all `pattern`. */
bool io_check_pattern(const uint8_t *data, uint8_t pattern, uint64_t length);

/* ---- buffer.c ---- */

/* Memory for one request, cut into iovecs by a list of lengths. */
struct io_buffer {
    void *memory;
    uint8_t *data;
    uint64_t length;
    struct iovec *iov;
    int iov_count;
};
/* From texts with lengths; false after reporting. */
bool io_buffer_init(struct io_buffer *buffer, struct io_session *session, char **lengths, int count, uint8_t fill);
bool io_buffer_init_length(struct io_buffer *buffer, struct io_session *session, uint64_t length, uint8_t fill);
/* Fills it with a file's content, over and over. */
bool io_buffer_load(struct io_buffer *buffer, const char *filename);
void io_buffer_finish(struct io_buffer *buffer);
