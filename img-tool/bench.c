/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench: sends many requests to an image and tells how long that took.
 *
 * Options and output are qemu-img's. Ours alone: --random SEED (random places), --time SECONDS, --loops N (as many
 * threads on one image, each with a loop and -d requests of its own), --json. bench_lane.c does the work.
 */
#include "bench.h"
#include "command.h"
#include "image.h"
#include "json_out.h"
#include "size_arg.h"

#include <base/coroutine.h>

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LOOPS = 256 };

struct bench_args {
    struct image_source source;
    const char *filename;
    bool write, drain, json, random;
    uint64_t count, depth, size, step, offset, pattern, flush_interval, seed, seconds, loops;
    bool count_given;
};

struct bench {
    const struct bench_args *args;
    struct blk_front *front;
    struct loop *main_loop;
    struct co *waiting;
    unsigned running;
    bool stop;
};

/* A lane on a loop of its own. */
struct bench_thread {
    struct bench_lane lane; /* first: bench->lanes is an array of these */
    struct bench *bench;
    struct loop *loop;
    struct loop_post post;
};

/* ---- running ---- */

static void count_down(struct bench *bench)
{
    if (--bench->running == 0 && bench->waiting)
        co_wake(bench->waiting);
}

static void thread_ended(struct loop_post *post) { count_down(container_of(post, struct bench_thread, post)->bench); }

/* On the lane's loop: the rest is the main loop's. */
static void lane_done(struct bench_lane *lane)
{
    struct bench_thread *thread = container_of(lane, struct bench_thread, lane);
    thread->post.fn = thread_ended;
    loop_post(thread->bench->main_loop, &thread->post);
}

static void start_lane(struct loop_post *post)
{
    bench_lane_start(&container_of(post, struct bench_thread, post)->lane);
}

struct bench_timer {
    struct loop_timer timer;
    struct bench *bench;
};

static void time_is_up(struct loop_timer *timer)
{
    struct bench *bench = container_of(timer, struct bench_timer, timer)->bench;
    __atomic_store_n(&bench->stop, true, __ATOMIC_RELAXED);
}

static uint64_t align_to(uint64_t value, uint64_t step) { return step ? value / step * step : 0; }

static void set_up_lane(struct bench *bench, struct bench_thread *thread, uint64_t index)
{
    const struct bench_args *args = bench->args;
    uint64_t share = args->count / args->loops + (index < args->count % args->loops);
    thread->bench = bench;
    thread->lane = (struct bench_lane){
        .front = bench->front,
        .write = args->write,
        .drain = args->drain,
        .random = args->random,
        .count = args->seconds && !args->count_given ? UINT64_MAX : share,
        .depth = (unsigned)args->depth,
        .size = args->size,
        .step = args->step,
        .offset = args->offset,
        .image_size = blk_front_size(bench->front),
        .random_state = args->seed + index * UINT64_C(0xd1342543de82ef95),
        .flush_interval = args->flush_interval,
        .pattern = (uint8_t)args->pattern,
        .stop = args->seconds ? &bench->stop : NULL,
        .done = lane_done,
    };
    /* In sequence, each loop has a part of the image to begin with. */
    if (!args->random && args->loops > 1)
        thread->lane.offset += align_to(thread->lane.image_size / args->loops, args->step) * index;
}

static coroutine_fn void co_wait_for_lanes(struct bench *bench)
{
    struct bench_timer timer = { .timer = { .fn = time_is_up }, .bench = bench };
    if (bench->args->seconds)
        loop_timer_arm(bench->main_loop, &timer.timer, loop_now_ns() + bench->args->seconds * UINT64_C(1000000000));
    bench->waiting = co_self();
    if (bench->running)
        co_yield();
    loop_timer_disarm(&timer.timer);
}

/* 0 or an exit status after reporting. */
static coroutine_fn int co_run_lanes(struct bench *bench, struct bench_thread *threads)
{
    unsigned count = (unsigned)bench->args->loops;
    struct error *error = NULL;
    int status = 0;
    for (unsigned i = 0; i < count && !status; i++) {
        set_up_lane(bench, &threads[i], i);
        threads[i].loop = count > 1 ? loop_thread_start("bench", &error) : bench->main_loop;
        if (!threads[i].loop) {
            error_report_free(error);
            status = 1;
        } else if (bench_lane_init(&threads[i].lane) < 0) {
            error_report("Out of memory");
            status = 1;
        }
    }
    for (unsigned i = 0; i < count && !status; i++) {
        bench->running++;
        threads[i].post.fn = start_lane;
        loop_post(threads[i].loop, &threads[i].post);
    }
    co_wait_for_lanes(bench);
    for (unsigned i = 0; i < count; i++) {
        if (count > 1 && threads[i].loop)
            loop_thread_stop(threads[i].loop);
        bench_lane_finish(&threads[i].lane);
    }
    return status;
}

/* ---- reporting ---- */

static void print_json(const struct bench_args *args, const struct bench_thread *threads, double seconds,
                       const struct blk_stats *stats)
{
    uint64_t completed = 0, flushes = 0;
    for (uint64_t i = 0; i < args->loops; i++) {
        completed += threads[i].lane.completed;
        flushes += threads[i].lane.flushes;
    }
    json_t *object = json_object();
    json_object_set_new(object, "operation", json_string(args->write ? "write" : "read"));
    json_object_set_new(object, "random", json_boolean(args->random));
    json_object_set_new(object, "request-size", json_integer((json_int_t)args->size));
    json_object_set_new(object, "depth", json_integer((json_int_t)args->depth));
    json_object_set_new(object, "loops", json_integer((json_int_t)args->loops));
    json_object_set_new(object, "requests", json_integer((json_int_t)completed));
    json_object_set_new(object, "flushes", json_integer((json_int_t)flushes));
    json_object_set_new(object, "seconds", json_real(seconds));
    json_object_set_new(object, "requests-per-second", json_real(seconds > 0 ? (double)completed / seconds : 0));
    json_object_set_new(object, "bytes-per-second",
                        json_real(seconds > 0 ? (double)completed * (double)args->size / seconds : 0));
    json_object_set_new(object, "mapped", json_integer((json_int_t)stats->mapped));
    json_object_set_new(object, "slow", json_integer((json_int_t)stats->slow));
    json_object_set_new(object, "coroutines", json_integer((json_int_t)co_count_started()));
    json_print(object, stdout);
    json_decref(object);
}

static int report(struct bench *bench, const struct bench_thread *threads)
{
    const struct bench_args *args = bench->args;
    uint64_t start = UINT64_MAX, end = 0;
    for (uint64_t i = 0; i < args->loops; i++) {
        const struct bench_lane *lane = &threads[i].lane;
        if (lane->error) {
            error_report("Failed request: %s", strerror(-lane->error));
            return 1;
        }
        start = MIN(start, lane->start_ns);
        end = MAX(end, lane->end_ns);
    }
    double seconds = (double)(end - start) / 1e9;
    struct blk_stats stats;
    blk_front_stats(bench->front, &stats);
    if (args->json)
        print_json(args, threads, seconds, &stats);
    else
        printf("Run completed in %3.3f seconds.\n", seconds);
    return 0;
}

static void announce(const struct bench_args *args)
{
    const char *operation = args->write ? "write" : "read";
    if (args->seconds)
        printf("Sending %s requests for %" PRIu64 " seconds", operation, args->seconds);
    else
        printf("Sending %" PRIu64 " %s requests", args->count, operation);
    printf(", %" PRIu64 " bytes each, %" PRIu64 " in parallel (", args->size, args->depth);
    if (args->random)
        printf("at random offsets from %" PRIu64 ", seed %" PRIu64 ")\n", args->offset, args->seed);
    else
        printf("starting at offset %" PRIu64 ", step size %" PRIu64 ")\n", args->offset, args->step);
    if (args->loops > 1)
        printf("On each of %" PRIu64 " loops as many in parallel\n", args->loops);
    if (args->flush_interval)
        printf("Sending flush every %" PRIu64 " requests\n", args->flush_interval);
    fflush(stdout);
}

static coroutine_fn int co_bench(struct blk_front *front, void *arg)
{
    const struct bench_args *args = arg;
    struct bench bench = { .args = args, .front = front, .main_loop = loop_current() };
    size_t size = sizeof(struct bench_thread) * args->loops;
    struct bench_thread *threads = aligned_alloc(_Alignof(struct bench_thread), size);
    if (!threads) {
        error_report("Out of memory");
        return 1;
    }
    memset(threads, 0, size);
    if (args->random && args->offset + args->size > blk_front_size(front)) {
        error_report("The image is too small for one request");
        free(threads);
        return 1;
    }
    if (!args->json)
        announce(args);
    int status = co_run_lanes(&bench, threads);
    if (!status)
        status = report(&bench, threads);
    free(threads);
    return status;
}

/* ---- command line ---- */

enum {
    OPTION_FLUSH_INTERVAL = IMAGE_OPT_OWN,
    OPTION_NO_DRAIN,
    OPTION_PATTERN,
    OPTION_RANDOM,
    OPTION_TIME,
    OPTION_LOOPS,
    OPTION_JSON,
};

static bool number_arg(const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    if (img_number_arg(text, max, out) && *out >= min)
        return true;
    error_report("Invalid %s specified", what);
    return false;
}

static bool aio_arg(const char *text, unsigned *flags)
{
    if (!strcmp(text, "threads")) {
        *flags |= BLK_O_AIO_THREADS;
    } else if (strcmp(text, "native") != 0 && strcmp(text, "io_uring") != 0) {
        error_report("Invalid aio option: %s", text);
        return false;
    }
    return true;
}

/* Options that take a value which may be bad. false after reporting. */
static bool parse_value(int option, struct bench_args *args)
{
    switch (option) {
    case 'c': args->count_given = true; return number_arg("request count", optarg, 0, INT_MAX, &args->count);
    case 'd': return number_arg("queue depth", optarg, 1, INT_MAX, &args->depth);
    case 'i': return aio_arg(optarg, &args->source.flags);
    case 'o': return img_size_arg("offset", optarg, 0, INT64_MAX, &args->offset);
    case 's': return img_size_arg("buffer size", optarg, 0, INT_MAX, &args->size);
    case 'S': return img_size_arg("step_size", optarg, 0, INT_MAX, &args->step);
    case 't':
        if (image_cache_mode(&args->source, optarg))
            return true;
        error_report("Invalid cache mode");
        return false;
    case OPTION_PATTERN: return number_arg("pattern byte", optarg, 0, 0xff, &args->pattern);
    case OPTION_FLUSH_INTERVAL: return number_arg("flush interval", optarg, 0, INT_MAX, &args->flush_interval);
    case OPTION_TIME: return number_arg("time", optarg, 1, INT_MAX, &args->seconds);
    case OPTION_LOOPS: return number_arg("number of loops", optarg, 1, MAX_LOOPS, &args->loops);
    case OPTION_RANDOM: args->random = true; return number_arg("seed", optarg, 0, UINT64_MAX, &args->seed);
    default: return false;
    }
}

static int check_args(struct bench_args *args)
{
    if (!args->write && args->flush_interval) {
        error_report("--flush-interval is only available in write tests");
        return 1;
    }
    if (args->flush_interval && args->flush_interval < args->depth) {
        error_report("Flush interval can't be smaller than depth");
        return 1;
    }
    if (args->random && !args->size) {
        error_report("Invalid buffer size specified");
        return 1;
    }
    if (!args->step)
        args->step = args->size;
    return image_source_valid(&args->source) ? -1 : 1;
}

static const struct img_option options[] = {
    IMG_HELP_OPTION,
    IMAGE_IMAGE_OPTS_OPTION,
    IMAGE_NEW_FORMAT_OPTION,
    { 't', "cache", "CACHE", "cache mode", true },
    { 'i', "aio", "threads|native|io_uring", "how requests go to the host", true },
    { 'n', "native", NULL, "accepted: native AIO is what is done anyway", true },
    { 'c', "count", "COUNT", "so many requests (75000)", true },
    { 'd', "depth", "DEPTH", "so many at a time (64)", true },
    { 's', "buffer-size", "SIZE", "bytes of a request (4096)", true },
    { 'S', "step-size", "STEP", "bytes from one request to the next; as many as a request has, if not given", true },
    { 'o', "offset", "OFFSET", "where the first request goes", true },
    { 'w', "write", NULL, "write; the content is overwritten", true },
    { OPTION_PATTERN, "pattern", "BYTE", "the byte to write (0)" },
    { OPTION_FLUSH_INTERVAL, "flush-interval", "N", "flush after so many writes" },
    { OPTION_NO_DRAIN, "no-drain", NULL, "do not wait for other requests before a flush" },
    { OPTION_RANDOM, "random", "SEED", "send requests to random places", true },
    { OPTION_TIME, "time", "SECONDS", "end after that long", true },
    { OPTION_LOOPS, "loops", "N", "use so many threads on the image", true },
    { OPTION_JSON, "json", NULL, "print more, for programs", true },
    IMAGE_FORCE_SHARE_OPTION,
    { 'q', "quiet", NULL, "accepted; nothing less is printed" },
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct bench_args *args)
{
    int option;
    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 'f': args->source.format = optarg; break;
        case 'n': break; /* native AIO: what we do anyway */
        case 'q': break; /* says nothing less, as in qemu-img */
        case 'w': args->write = true; break;
        case 'U': args->source.force_share = true; break;
        case OPTION_NO_DRAIN: args->drain = false; break;
        case IMAGE_OPT_IMAGE_OPTS: args->source.image_opts = true; break;
        case OPTION_JSON: args->json = true; break;
        case IMG_OPT_HELP: return img_command_help("bench");
        case IMG_OPT_BAD: return 1;
        default:
            if (!parse_value(option, args))
                return 1;
        }
    }
    if (optind != argc - 1)
        return img_usage_error("Expecting one image file name");
    args->filename = argv[optind];
    return check_args(args);
}

static coroutine_fn int co_run_bench(int argc, char **argv)
{
    struct bench_args args = { .drain = true, .count = 75000, .depth = 64, .size = 4096, .loops = 1 };
    int status = parse(argc, argv, &args);
    if (status >= 0)
        return status;
    if (args.write)
        args.source.flags |= BLK_O_RDWR;
    return image_co_with(args.filename, &args.source, co_bench, &args);
}

static struct img_command bench = {
    .name = "bench",
    .usage =
        "[-c COUNT] [-d DEPTH] [-f FMT] [--flush-interval=N] [-i AIO] [-n] [--no-drain] [-o OFFSET] [--pattern=BYTE] "
        "[-q] "
        "[-s SIZE] [-S STEP] [-t CACHE] [-w] [-U] [--image-opts] [--random=SEED] [--time=SECONDS] [--loops=N] "
        "[--json] FILE",
    .help =
        "Sends requests (reads, or writes with -w) to an image and tells how long that took. --random sends them to "
        "random\n"
        "places, --time ends after that long, --loops uses as many threads on one image, --json prints more, for "
        "programs.\n"
        "With -w the image's content is overwritten.",
    .options = options,
    .co_run = co_run_bench,
};
IMG_COMMAND(bench)
