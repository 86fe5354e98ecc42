/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opening and closing the images that a sub-command works on, errors reported in QEMU's words. */
#pragma once

#include <block/front.h>
#include <block/image.h>

struct image_source {
    const char *format;  /* -f; NULL: probe */
    bool image_opts;     /* --image-opts: names are options */
    bool force_share;    /* -U */
    bool no_share;       /* nobody may write meanwhile, whatever the format */
    bool temporary;      /* what is written is gone when it is closed; the image is only read */
    bool copy_on_read;   /* what is read of its backing files is copied into it */
    bool no_write_cache; /* from the cache mode: writes are durable when done */
    unsigned flags;      /* BLK_O_* */
};

/* A cache mode's flags into *source. Returns false, silently, for words that are none. */
bool image_cache_mode(struct image_source *source, const char *mode);
/* The same; reports "Invalid WHAT option: MODE". */
bool image_cache_arg(struct image_source *source, const char *what, const char *mode);
/* Permission for what flags say (BLK_O_RDWR, BLK_O_RESIZE). NULL after reporting "Could not open 'NAME': …". */
coroutine_fn struct blk_front *image_co_open(const char *name, const struct image_source *source);
/* The same without the report. `options` (may be NULL) go on top of the source's. */
coroutine_fn struct blk_front *image_co_try_open(const char *name, const struct image_source *source,
                                                 const struct opts *options, struct error **errp);
/* Are these names of the same file on the host? */
bool image_same_file(const char *a, const char *b);
/* Flushes and closes. Returns 0, or a negative errno after reporting. Takes NULL. */
coroutine_fn int image_co_close(struct blk_front *front);
/* Opens the image, calls co_fn with it, and closes it. Returns what co_fn did, an exit status; 1 if the image could
 * not be opened or, in place of 0, not be closed. */
coroutine_fn int image_co_with(const char *name, const struct image_source *source,
                               coroutine_fn int (*co_fn)(struct blk_front *front, void *arg), void *arg);

/* ---- command line ---- */

/* Rows of the tables of all commands that open an image; the numbers of a command's own begin at IMAGE_OPT_OWN. */
enum { IMAGE_OPT_OBJECT = 256, IMAGE_OPT_IMAGE_OPTS, IMAGE_OPT_OUTPUT, IMAGE_OPT_OWN };
/* clang-format off */
#define IMAGE_OBJECT_OPTION { IMAGE_OPT_OBJECT, "object", "OBJECT", "make an object, as a secret" }
#define IMAGE_IMAGE_OPTS_OPTION \
    { IMAGE_OPT_IMAGE_OPTS, "image-opts", NULL, "operands are key=value,... of a block node" }
#define IMAGE_FORMAT_OPTION { 'f', "format", "FMT", "format of the image; without it the content decides" }
/* Of commands that have no long name for it in qemu-img 7.2. */
#define IMAGE_NEW_FORMAT_OPTION { 'f', "format", "FMT", "format of the image; without it the content decides", true }
#define IMAGE_OUTPUT_OPTION { IMAGE_OPT_OUTPUT, "output", "human|json", "for people, or for programs" }
#define IMAGE_FORCE_SHARE_OPTION \
    { 'U', "force-share", NULL, "read although another program has the image open for writing" }
#define IMAGE_QUIET_OPTION { 'q', "quiet", NULL, "print nothing but errors" }
#define IMAGE_COMMON_OPTIONS IMG_HELP_OPTION, IMAGE_OBJECT_OPTION, IMAGE_IMAGE_OPTS_OPTION
#define IMAGE_OPTIONS IMAGE_COMMON_OPTIONS, IMAGE_FORMAT_OPTION
#define IMAGE_CHANGE_OPTIONS IMAGE_COMMON_OPTIONS, IMAGE_NEW_FORMAT_OPTION
#define IMAGE_REPORT_OPTIONS IMAGE_OPTIONS, IMAGE_OUTPUT_OPTION, IMAGE_FORCE_SHARE_OPTION
/* clang-format on */
/* What img_getopt() returned and a command does not know itself: those, -f, -U, -h, or a bad one. -1 to go on, else the
 * exit status. */
int image_source_arg(struct image_source *source, const char *command, int option);
/* The one operand; NULL after reporting that there is none, or more. */
const char *image_operand(int argc, char **argv);

/* What commands that report on one image share (check, info, map). Their options are IMAGE_REPORT_OPTIONS. */
struct image_report {
    struct image_source source;
    const char *filename;
    const char *output; /* as it was given; NULL: human */
    bool json;
};
/* As image_source_arg(), and --output. */
int image_report_arg(struct image_report *report, const char *command, int option);
/* After the options: what --output means. false after reporting. */
bool image_report_output(struct image_report *report);
/* The same, and the operand. */
bool image_report_operand(struct image_report *report, int argc, char **argv);

/* "--image-opts and --format are mutually exclusive": reports and returns false. */
bool image_source_valid(const struct image_source *source);
/* --object: makes it, overwriting what is secret in the text, which is argv's. Reports and returns false. */
bool image_object_arg(char *text);
