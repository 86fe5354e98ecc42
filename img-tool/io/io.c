/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * io: exercises an image with commands, from -c or standard input, as qemu-io does.
 *
 * Commands run one after the other in one coroutine. Lines are read in a worker thread, so that aio_ requests go on
 * while a person types. The exit status is 1 if any command failed; all later ones are run nevertheless.
 */
#include "io.h"

#include "../command.h"

#include <base/coroutine.h>
#include <base/pool.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct io_command *commands; /* by name */

void io_command_register(struct io_command *command)
{
    const struct io_command **at = &commands;
    while (*at && strcmp((*at)->name, command->name) < 0)
        at = (const struct io_command **)&(*at)->next;
    command->next = *at;
    *at = command;
}

static const struct io_command *find_command(const char *name)
{
    for (const struct io_command *command = commands; command; command = command->next) {
        if (!strcmp(command->name, name) || (command->alias && !strcmp(command->alias, name)))
            return command;
    }
    return NULL;
}

/* ---- help ---- */

static void print_usage(const struct io_command *command)
{
    printf("%s", command->name);
    if (command->args)
        printf(" %s", command->args);
    printf(" -- %s\n", command->summary);
}

int io_usage(const char *name)
{
    print_usage(find_command(name));
    return -EINVAL;
}

int io_help(const char *name)
{
    const struct io_command *command = name ? find_command(name) : commands;
    if (!command) {
        printf("command %s not found\n", name);
        return -EINVAL;
    }
    if (name) {
        print_usage(command);
        if (command->help)
            printf("\n%s\n", command->help);
        return 0;
    }
    for (; command; command = command->next)
        print_usage(command);
    printf("\nUse 'help commandname' for extended help.\n");
    return 0;
}

/* ---- running commands ---- */

static bool check_arguments(const struct io_command *command, int args)
{
    if (args >= command->min_args && (command->max_args < 0 || args <= command->max_args))
        return true;
    fprintf(stderr, "bad argument count %d to %s, expected ", args, command->name);
    if (command->max_args < 0)
        fprintf(stderr, "at least %d arguments\n", command->min_args);
    else if (command->min_args == command->max_args)
        fprintf(stderr, "%d arguments\n", command->min_args);
    else
        fprintf(stderr, "between %d and %d arguments\n", command->min_args, command->max_args);
    return false;
}

static coroutine_fn int co_run_words(struct io_session *session, int argc, char **argv)
{
    const struct io_command *command = find_command(argv[0]);
    if (!command) {
        fprintf(stderr, "command \"%s\" not found\n", argv[0]);
        return -EINVAL;
    }
    if (!(command->flags & IO_NO_FILE) && !session->front) {
        fprintf(stderr, "no file open, try 'help open'\n");
        return -EINVAL;
    }
    if (!check_arguments(command, argc - 1))
        return -EINVAL;
    if ((command->flags & IO_WRITES) && !blk_front_writable(session->front)) {
        error_report("Block node is read-only");
        return -EACCES;
    }
    argv[0] = (char *)command->name; /* getopt() says it in its errors */
    optind = 0;
    opterr = 1;
    return command->co_run(session, argc, argv);
}

/* Runs one line, which is changed by it. */
static coroutine_fn int co_run_line(struct io_session *session, char *line)
{
    static const char blanks[] = " \t\r\n";
    size_t capacity = strlen(line) / 2 + 2;
    char **argv = xcalloc(capacity, sizeof(*argv)), *save = NULL;
    int argc = 0, ret = 0;
    for (char *word = strtok_r(line, blanks, &save); word; word = strtok_r(NULL, blanks, &save))
        argv[argc++] = word;
    if (argc)
        ret = co_run_words(session, argc, argv);
    free(argv);
    return ret;
}

static int read_line(void *arg)
{
    size_t size = 0;
    return getline(arg, &size, stdin) >= 0 ? 0 : -1;
}

/* Both return 0 or a negative errno: whether any command failed. */
static coroutine_fn int co_run_input(struct io_session *session)
{
    int result = 0, ret = 0;
    while (ret != IO_QUIT) {
        char *line = NULL;
        printf("%s> ", error_program());
        fflush(stdout);
        if (pool_co_run(read_line, &line) < 0) {
            free(line);
            break;
        }
        ret = co_run_line(session, line);
        fflush(stdout);
        free(line);
        result = ret < 0 ? ret : result;
    }
    return result;
}

static coroutine_fn int co_run_commands(struct io_session *session, char **lines, int count)
{
    int result = 0;
    for (int i = 0; i < count; i++) {
        char *line = xstrdup(lines[i]);
        int ret = co_run_line(session, line);
        free(line);
        if (ret == IO_QUIT)
            break;
        result = ret < 0 ? ret : result;
    }
    return result;
}

/* ---- command line ---- */

struct io_args {
    struct image_source source;
    char **lines; /* -c */
    int line_count;
    bool misalign;
    const char *filename;
};

/* Options that take a value which may be bad, and those to come. false after reporting. */
static bool parse_value(int option, struct io_args *args)
{
    switch (option) {
    case 'c':
        args->lines = xrealloc(args->lines, (size_t)(args->line_count + 1) * sizeof(*args->lines));
        args->lines[args->line_count++] = optarg;
        return true;
    case 'i': return io_aio_arg(&args->source, optarg);
    case 't': return io_cache_arg(&args->source, optarg);
    case 'd': return io_discard_arg(&args->source, optarg);
    case 'n': return io_cache_arg(&args->source, "none");
    case IMAGE_OPT_OBJECT: return image_object_arg(optarg);
    default: fprintf(stderr, "Try '%s --help' for more information\n", error_program()); return false;
    }
}

static const struct img_option options[] = {
    IMG_HELP_OPTION,
    { 'V', "version", NULL, "print the version and exit" },
    IMAGE_OBJECT_OPTION,
    IMAGE_IMAGE_OPTS_OPTION,
    IMAGE_FORMAT_OPTION,
    { 'c', "cmd", "COMMAND", "do COMMAND instead of reading standard input; 'help' lists them" },
    { 'r', "read-only", NULL, "open for reading only" },
    { 's', "snapshot", NULL, "what is written is gone at the end" },
    { 't', "cache", "CACHE", "cache mode" },
    { 'n', "nocache", NULL, "the same as -t none" },
    { 'i', "aio", "threads|native|io_uring", "how requests go to the host" },
    { 'k', "native-aio", NULL, "accepted: native AIO is what is done anyway" },
    { 'd', "discard", "ignore|unmap", "what a discard does" },
    { 'C', "copy-on-read", NULL, "copy into the image what is read of its backing files" },
    { 'm', "misalign", NULL, "take buffers that are not aligned" },
    IMAGE_FORCE_SHARE_OPTION,
    { 'T', "trace", "PATTERN", "accepted: trace points are USDT probes, always there" },
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct io_args *args)
{
    struct img_getopt table;
    int option;
    argv[0] = (char *)error_program(); /* for getopt()'s errors */
    opterr = 1;
    img_getopt_build(options, "", &table);
    while ((option = getopt_long(argc, argv, table.letters, table.names, NULL)) != -1) {
        switch (option) {
        case 'f': args->source.format = optarg; break;
        case 'r': args->source.flags &= ~(unsigned)BLK_O_RDWR; break;
        case 's': args->source.temporary = true; break;
        case 'C': args->source.copy_on_read = true; break;
        case 'm': args->misalign = true; break;
        case 'k': break; /* native AIO: what we do anyway */
        case 'T': break; /* trace points are USDT probes here: nothing to switch on */
        case 'U': args->source.force_share = true; break;
        case IMAGE_OPT_IMAGE_OPTS: args->source.image_opts = true; break;
        case 'h': return img_command_help("io");
        case 'V': printf("%s version " VMM_VERSION " (vmm)\n", error_program()); return 0;
        default:
            if (!parse_value(option, args))
                return 1;
        }
    }
    if (argc - optind > 1) {
        img_command_help("io");
        return 1;
    }
    args->filename = argv[optind];
    if (args->source.image_opts && args->source.format) {
        error_report("--image-opts and -f are mutually exclusive");
        return 1;
    }
    return -1;
}

/* Opens what the command line names. */
static coroutine_fn int co_open_named(struct io_session *session, const struct io_args *args)
{
    struct opts *opts = opts_new();
    struct image_source source = args->source;
    const char *name = args->filename;
    struct error *error = NULL;
    if (source.image_opts && opts_parse(opts, name, NULL, OPTS_LAST_WINS | OPTS_WARN_SHORT, &error) < 0) {
        error_report_free(error);
        opts_free(opts);
        return -EINVAL;
    }
    if (source.image_opts)
        name = NULL;
    source.image_opts = false;
    return io_co_open(session, name, opts, &source);
}

static coroutine_fn int co_run_io(int argc, char **argv)
{
    struct io_args args = { .source = { .flags = BLK_O_RDWR | BLK_O_UNMAP } };
    struct io_session session = { 0 };
    int status = parse(argc, argv, &args);
    if (status < 0) {
        int ret = 0;
        session.misalign = args.misalign;
        session.source = args.source;
        if (args.filename)
            ret = co_open_named(&session, &args);
        if (ret == 0)
            ret = args.line_count ? co_run_commands(&session, args.lines, args.line_count) : co_run_input(&session);
        if (io_co_close(&session) < 0)
            ret = -EIO;
        status = ret < 0 ? 1 : 0;
    }
    free(args.lines);
    return status;
}

static struct img_command io = {
    .name = "io",
    .usage =
        "[--object OBJECT] [--image-opts] [-c COMMAND]... [-f FMT] [-r] [-s] [-n] [-C] [-m] [-k] [-i AIO] [-t CACHE] "
        "[-d DISCARD] [-U] [FILE]",
    .help =
        "Reads, writes and examines an image by commands, from -c or line by line from standard input. -r opens it "
        "read-only,\n"
        "-n is -t none, -m takes buffers that are not aligned. -c help lists the commands; of theirs, -b of read and "
        "write,\n"
        "and -c of write, are refused for now.",
    .options = options,
    .co_run = co_run_io,
};
IMG_COMMAND(io)
