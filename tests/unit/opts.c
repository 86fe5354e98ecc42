/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Options: both syntaxes, typed reading with QEMU's words, JSON there and back, help; then random texts, which must
 * never crash, leave half a set behind, or come back from JSON as something else. The seed is printed on failure and
 * may be given as OPTS_SEED.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <base/compiler.h>
#include <base/opts.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const MODES[] = { "off", "metadata", "full", NULL };
static const struct opt_desc TABLE[] = {
    { "size", OPT_SIZE, NULL, "Virtual disk size", NULL, 0 },
    { "cluster_size", OPT_SIZE, "64k", "qcow2 cluster size", NULL, 0 },
    { "memory", OPT_SIZE, NULL, "Guest memory", NULL, 'M' },
    { "lazy_refcounts", OPT_BOOL, "off", "Postpone refcount updates", NULL, 0 },
    { "refcount_bits", OPT_NUMBER, "16", "Width of a reference count entry in bits", NULL, 0 },
    { "preallocation", OPT_ENUM, "off", "Preallocation mode", MODES, 0 },
    { "backing_file", OPT_STRING, NULL, "File name of a base image", NULL, 0 },
    { NULL, OPT_STRING, NULL, NULL, NULL, 0 },
};

struct text {
    char buf[4096];
    size_t length;
};

static void append_pair(const char *key, const char *value, void *arg)
{
    struct text *text = arg;
    int n = snprintf(text->buf + text->length, sizeof(text->buf) - text->length, "[%s|%s]", key, value);
    text->length += MIN((size_t)n, sizeof(text->buf) - text->length - 1);
}

/* The set as [key|value][key|value]…; in a static buffer. */
static const char *dump(const struct opts *opts)
{
    static struct text text;
    text = (struct text){ .length = 0 };
    opts_each(opts, append_pair, &text);
    return text.buf;
}

static struct opts *parse(const char *text)
{
    struct opts *opts = opts_new();
    struct error *error = NULL;
    if (opts_parse(opts, text, NULL, 0, &error) < 0)
        fail_msg("'%s': %s", text, error_text(error));
    return opts;
}

static struct opts *parse_json(const char *text)
{
    struct opts *opts = opts_new();
    struct error *error = NULL;
    if (opts_parse_json(opts, text, &error) < 0)
        fail_msg("'%s': %s", text, error_text(error));
    return opts;
}

static void parses_pairs(void **state)
{
    static const struct {
        const char *text, *implied, *dump;
    } cases[] = {
        { "", NULL, "" },
        { "a=b", NULL, "[a|b]" },
        { "a=b,c,d=x,,y", NULL, "[a|b][c|on][d|x,y]" },
        { "a==5", NULL, "[a|=5]" },
        { "a=", NULL, "[a|]" },
        { "a=,b=", NULL, "[a|][b|]" },
        { "a=1,", NULL, "[a|1]" },
        { "a=,,", NULL, "[a|,]" },
        { "a=,,,b=1", NULL, "[a|,][b|1]" },
        { "x.qcow2,if=virtio", "file", "[file|x.qcow2][if|virtio]" },
        { "x,,y.img,if=none", "file", "[file|x,y.img][if|none]" },
        { "if=none,x", "file", "[if|none][x|on]" },
        { "file.driver=file,file.filename=a=b", NULL, "[file.driver|file][file.filename|a=b]" },
        { "nofoo,on", NULL, "[foo|off][on|on]" },
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct opts *opts = opts_new();
        struct error *error = NULL;
        assert_int_equal(opts_parse(opts, cases[i].text, cases[i].implied, 0, &error), 0);
        assert_string_equal(dump(opts), cases[i].dump);
        opts_free(opts);
    }
}

static void refuses_bad_pairs(void **state)
{
    static const struct {
        const char *text, *error;
    } cases[] = {
        { "=1", "Invalid parameter ''" },
        { ",a=1", "Invalid parameter ''" },
        { "b=2,=3", "Invalid parameter ''" },
        { "no", "Invalid parameter ''" },
        { "b=2,b=3", "Parameter 'b' is given more than once" },
        { "keep=2", "Parameter 'keep' is given more than once" },
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct opts *opts = parse("keep=1");
        struct error *error AUTO_ERROR = NULL;
        int ret = opts_parse(opts, cases[i].text, NULL, 0, &error);
        assert_int_equal(ret, -EINVAL);
        assert_string_equal(error_text(error), cases[i].error);
        assert_string_equal(dump(opts), "[keep|1]");
        opts_free(opts);
    }
}

static void last_wins_where_asked(void **state)
{
    struct opts *opts = parse("cluster_size=512,b=1");
    assert_int_equal(opts_parse(opts, "cluster_size=64k,cluster_size=4k", NULL, OPTS_LAST_WINS, NULL), 0);
    assert_string_equal(dump(opts), "[cluster_size|4k][b|1]");
    opts_free(opts);
}

static void set_and_take(void **state)
{
    struct opts *opts = parse("a=1,file.driver=raw,file.file.filename=x,files=2,filer.x=3");
    opts_set(opts, "a", "2");
    opts_set_bool(opts, "t", true);
    opts_set_number(opts, "n", INT64_MIN);
    assert_string_equal(
        dump(opts), "[a|2][file.driver|raw][file.file.filename|x][files|2][filer.x|3][t|on][n|-9223372036854775808]");
    assert_true(opts_has_prefix(opts, "file"));
    assert_true(opts_has_prefix(opts, "file.file"));
    assert_false(opts_has_prefix(opts, "files"));
    assert_false(opts_has(opts, "file"));
    struct opts *clone = opts_clone(opts);
    struct opts *file = opts_take_prefix(opts, "file");
    assert_string_equal(dump(file), "[driver|raw][file.filename|x]");
    assert_string_equal(dump(opts), "[a|2][files|2][filer.x|3][t|on][n|-9223372036854775808]");
    assert_int_equal(opts_count(clone), 7);
    char *value AUTO_FREE = opts_take(opts, "files");
    assert_string_equal(value, "2");
    assert_null(opts_take(opts, "files"));
    assert_true(opts_del(opts, "a"));
    assert_false(opts_del(opts, "a"));
    struct opts *none = opts_take_prefix(opts, "zzz");
    assert_int_equal(opts_count(none), 0);
    opts_free(none);
    opts_free(file);
    opts_free(clone);
    opts_free(opts);
    opts_free(NULL);
}

static void reads_types_and_defaults(void **state)
{
    struct opts *opts = parse("size=1.5k,memory=2,lazy_refcounts=yes,refcount_bits=0x20,preallocation=full,extra=1");
    uint64_t number = 0;
    bool flag = false;
    int mode = -1;
    const char *name = "untouched";
    assert_int_equal(opts_size(opts, TABLE, "size", &number, NULL), 1);
    assert_int_equal(number, 1536);
    assert_int_equal(opts_size(opts, TABLE, "memory", &number, NULL), 1);
    assert_int_equal(number, 2 << 20);
    assert_int_equal(opts_size(opts, TABLE, "cluster_size", &number, NULL), 0);
    assert_int_equal(number, 65536);
    assert_int_equal(opts_bool(opts, TABLE, "lazy_refcounts", &flag, NULL), 1);
    assert_true(flag);
    assert_int_equal(opts_number(opts, TABLE, "refcount_bits", &number, NULL), 1);
    assert_int_equal(number, 32);
    assert_int_equal(opts_enum(opts, TABLE, "preallocation", &mode, NULL), 1);
    assert_int_equal(mode, 2);
    assert_int_equal(opts_string(opts, TABLE, "backing_file", &name, NULL), 0);
    assert_string_equal(name, "untouched");
    assert_string_equal(opts_unused(opts), "extra");
    struct opts *clone = opts_clone(opts);
    assert_string_equal(opts_unused(clone), "extra"); /* it knows what was used */
    opts_free(clone);
    assert_true(opts_del(opts, "extra"));
    assert_null(opts_unused(opts));
    opts_free(opts);
}

#define SIZE_WORDS(name) \
    "Parameter '" name "' expects a non-negative number below 2^64\n" \
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."

static void refuses_bad_values(void **state)
{
    static const struct {
        const char *text, *error;
    } cases[] = {
        { "foo=1", "Invalid parameter 'foo'" },
        { "size.x=1", "Invalid parameter 'size.x'" },
        { "size=abc", SIZE_WORDS("size") },
        { "size=-1", SIZE_WORDS("size") },
        { "size=", SIZE_WORDS("size") },
        { "size", SIZE_WORDS("size") },
        { "cluster_size==5", SIZE_WORDS("cluster_size") },
        { "size=16E", "Value '16E' is out of range for parameter 'size'" },
        { "lazy_refcounts=maybe", "Parameter 'lazy_refcounts' expects 'on' or 'off'" },
        { "lazy_refcounts=", "Parameter 'lazy_refcounts' expects 'on' or 'off'" },
        { "lazy_refcounts=ON", "Parameter 'lazy_refcounts' expects 'on' or 'off'" },
        { "refcount_bits=x", "Parameter 'refcount_bits' expects a number" },
        { "refcount_bits=", "Parameter 'refcount_bits' expects a number" },
        { "refcount_bits=1k", "Parameter 'refcount_bits' expects a number" },
        { "refcount_bits=-1", "Parameter 'refcount_bits' expects a non-negative number" },
        { "refcount_bits=99999999999999999999",
          "Value '99999999999999999999' is too large for parameter 'refcount_bits'" },
        { "preallocation=bad", "Parameter 'preallocation' does not accept value 'bad'" },
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct opts *opts = parse(cases[i].text);
        struct error *error AUTO_ERROR = NULL;
        assert_true(opts_validate(opts, TABLE, &error) < 0);
        assert_string_equal(error_text(error), cases[i].error);
        opts_free(opts);
    }
    struct opts *good = parse("size=1k,backing_file=any,,thing,lazy_refcounts");
    assert_int_equal(opts_validate(good, TABLE, NULL), 0);
    assert_string_equal(opts_unused(good), "size"); /* validating consumes nothing */
    opts_free(good);
}

static void json_flattens(void **state)
{
    static const struct {
        const char *text, *dump;
    } cases[] = {
        { "{}", "" },
        { "{\"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", \"filename\": \"x\"}}",
          "[driver|qcow2][file.driver|file][file.filename|x]" },
        { "{\"file.filename\": \"x\", \"file\": {\"driver\": \"file\"}}", "[file.filename|x][file.driver|file]" },
        { "{\"a\": [1, {\"b\": true}, [false]], \"c\": null, \"d\": {}, \"e\": -5}",
          "[a.0|1][a.1.b|on][a.2.0|off][c|][e|-5]" },
        { " {'driver': 'raw', 'x': 'it\\'s \"so\"', \"y\": \"it's\"}", "[driver|raw][x|it's \"so\"][y|it's]" },
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct opts *opts = parse_json(cases[i].text);
        assert_string_equal(dump(opts), cases[i].dump);
        opts_free(opts);
    }
}

static void json_refuses(void **state)
{
    static const struct {
        const char *text, *error;
    } cases[] = {
        { "", "Expecting a JSON value" },
        { " \n", "Expecting a JSON value" },
        { "[]", "Invalid JSON object given" },
        { "[1]", "Invalid JSON object given" },
        { "5", "Invalid JSON object given" },
        { "{", "JSON parse error, premature EOI" },
        { "{\"a\": 1", "JSON parse error, premature EOI" },
        { "{\"a\": 1} x", "Expecting at most one JSON value" },
        { "{\"a\": 1, \"a\": 2}", "JSON parse error, duplicate key" },
        { "{\"a.b\": 1, \"a\": {\"b\": 2}}", "Parameter 'a.b' is given more than once" },
        { "{\"\": 1}", "Invalid parameter ''" },
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct opts *opts = opts_new();
        struct error *error AUTO_ERROR = NULL;
        assert_int_equal(opts_parse_json(opts, cases[i].text, &error), -EINVAL);
        assert_string_equal(error_text(error), cases[i].error);
        opts_free(opts);
    }
}

static void json_depth_is_bounded(void **state)
{
    char text[3000] = "{\"a\":";
    for (int i = 0; i < 1000; i++)
        strcat(text, "[");
    strcat(text, "1");
    for (int i = 0; i < 1000; i++)
        strcat(text, "]");
    strcat(text, "}");
    struct opts *opts = opts_new();
    struct error *error AUTO_ERROR = NULL;
    assert_int_equal(opts_parse_json(opts, text, &error), -EINVAL);
    assert_non_null(strstr(error_text(error), "nested too deeply"));
    /* As text, a key may have any number of dots: going to JSON and being freed must not exhaust the stack. */
    static char dots[2000001];
    for (size_t i = 0; i < sizeof(dots) - 1; i++)
        dots[i] = i % 2 ? '.' : 'a';
    dots[sizeof(dots) - 2] = 'z';
    opts_set(opts, dots, "1");
    json_t *json = opts_to_json(opts);
    json_decref(json);
    opts_free(opts);
}

static void json_types_must_fit(void **state)
{
    static const struct {
        const char *text, *error;
    } cases[] = {
        { "{\"size\": 1024, \"lazy_refcounts\": true, \"refcount_bits\": 16, \"backing_file\": \"x\"}", NULL },
        { "{\"size\": \"1k\", \"lazy_refcounts\": \"on\", \"refcount_bits\": \"16\"}", NULL },
        { "{\"size\": null, \"backing_file\": null}", NULL },
        { "{\"backing_file\": 1}", "Invalid parameter type for 'backing_file', expected: string" },
        { "{\"backing_file\": true}", "Invalid parameter type for 'backing_file', expected: string" },
        { "{\"lazy_refcounts\": 1}", "Invalid parameter type for 'lazy_refcounts', expected: boolean" },
        { "{\"size\": 1.5}", "Invalid parameter type for 'size', expected: integer" },
        { "{\"size\": -1}", SIZE_WORDS("size") },
        { "{\"refcount_bits\": true}", "Invalid parameter type for 'refcount_bits', expected: integer" },
        { "{\"preallocation\": 1}", "Invalid parameter type for 'preallocation', expected: string" },
        { "{\"preallocation\": \"bad\"}", "Parameter 'preallocation' does not accept value 'bad'" },
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct opts *opts = parse_json(cases[i].text);
        struct error *error AUTO_ERROR = NULL;
        int ret = opts_validate(opts, TABLE, &error);
        if (cases[i].error) {
            assert_true(ret < 0);
            assert_string_equal(error_text(error), cases[i].error);
        } else {
            assert_int_equal(ret, 0);
        }
        opts_free(opts);
    }
    struct opts *nulls = parse_json("{\"size\": null, \"cluster_size\": null}");
    uint64_t size = 7;
    assert_int_equal(opts_size(nulls, TABLE, "size", &size, NULL), 0);
    assert_int_equal(size, 7);
    assert_int_equal(opts_size(nulls, TABLE, "cluster_size", &size, NULL), 0);
    assert_int_equal(size, 65536);
    assert_null(opts_unused(nulls));
    opts_free(nulls);
}

static void assert_json(const struct opts *opts, const char *expected)
{
    json_t *json = opts_to_json(opts);
    char *text = json_dumps(json, JSON_COMPACT);
    assert_string_equal(text, expected);
    free(text);
    json_decref(json);
}

static void goes_back_to_json(void **state)
{
    struct opts *opts = parse("driver=quorum,children.0=a,children.1.file=b,size=1k,flag");
    opts_set_number(opts, "n", 5);
    opts_set_bool(opts, "t", false);
    assert_json(opts, "{\"driver\":\"quorum\",\"children\":[\"a\",{\"file\":\"b\"}],\"size\":\"1k\",\"flag\":\"on\","
                      "\"n\":5,\"t\":false}");
    opts_free(opts);
    opts = parse("a=1,a.b=2,c.d=3,c=4,e.=5,.f=6,g.1=7,h..i=8");
    json_t *json = opts_to_json(opts); /* odd keys: nothing is lost */
    struct opts *again = opts_new();
    assert_int_equal(opts_from_json(again, json, NULL), 0);
    for (const char *const *key = (const char *const[]){ "a", "a.b", "c.d", "c", "e.", ".f", "g.1", "h..i", NULL };
         *key; key++)
        assert_true(opts_has(again, *key));
    assert_int_equal(opts_count(again), 8);
    json_decref(json);
    opts_free(again);
    opts_free(opts);
}

static void prints_help(void **state)
{
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    assert_non_null(out);
    opts_print_help(TABLE, out);
    fclose(out);
    assert_string_equal(text, "  backing_file=<str>     - File name of a base image\n"
                              "  cluster_size=<size>    - qcow2 cluster size (default: 64k)\n"
                              "  lazy_refcounts=<bool (on/off)> - Postpone refcount updates (default: off)\n"
                              "  memory=<size>          - Guest memory\n"
                              "  preallocation=<str>    - Preallocation mode (default: off)\n"
                              "  refcount_bits=<num>    - Width of a reference count entry in bits (default: 16)\n"
                              "  size=<size>            - Virtual disk size\n");
    free(text);
    assert_ptr_equal(opts_find(TABLE, "memory"), &TABLE[2]);
    assert_null(opts_find(TABLE, "mem"));
}

/* ---- random texts ---- */

static uint64_t rng;

static unsigned draw(unsigned below)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (unsigned)((rng >> 11) % below);
}

static void random_text(char *buf, size_t size, const char *alphabet)
{
    size_t length = draw((unsigned)size - 1), letters = strlen(alphabet);
    for (size_t i = 0; i < length; i++)
        buf[i] = draw(200) ? alphabet[draw((unsigned)letters)] : (char)(1 + draw(255));
    buf[length] = '\0';
}

static void escape_value(struct text *text, const char *value)
{
    for (; *value; value++) {
        if (*value == ',')
            text->buf[text->length++] = ',';
        text->buf[text->length++] = *value;
    }
    text->buf[text->length] = '\0';
}

static void write_pair(const char *key, const char *value, void *arg)
{
    struct text *text = arg;
    if (text->length)
        text->buf[text->length++] = ',';
    memcpy(text->buf + text->length, key, strlen(key));
    text->length += strlen(key);
    text->buf[text->length++] = '=';
    escape_value(text, value);
}

/* What parsed must, written out and parsed again, be the same; its JSON must hold as many keys. */
static void check_round_trip(const struct opts *opts)
{
    struct text text = { .length = 0 };
    char *before = xstrdup(dump(opts));
    opts_each(opts, write_pair, &text);
    struct opts *again = parse(text.buf);
    assert_string_equal(dump(again), before);
    opts_free(again);
    free(before);
    json_t *json = opts_to_json(opts);
    assert_non_null(json);
    json_decref(json);
}

static void random_option_texts(void **state)
{
    for (int i = 0; i < 50000; i++) {
        char buf[64];
        random_text(buf, sizeof(buf), "ab.,,==01k");
        struct opts *opts = opts_new();
        opts_set(opts, "x", "1");
        struct error *error = NULL;
        int ret = opts_parse(opts, buf, draw(2) ? "file" : NULL, draw(2), &error);
        assert_int_equal(ret < 0, error != NULL);
        if (ret == 0)
            check_round_trip(opts);
        else
            assert_string_equal(dump(opts), "[x|1]");
        opts_validate(opts, TABLE, NULL);
        error_free(error);
        opts_free(opts);
    }
}

static void random_json_texts(void **state)
{
    unsigned good = 0;
    for (int i = 0; i < 50000; i++) {
        char inner[48], buf[64];
        random_text(inner, draw(2) ? 8 : sizeof(inner), "{}[]\"\"'':,,10ab.\\ ");
        snprintf(buf, sizeof(buf), draw(2) ? "{\"a\":%s}" : "{'a.b':'%s'}", inner);
        struct opts *opts = opts_new();
        struct error *error = NULL;
        int ret = opts_parse_json(opts, buf, &error);
        assert_int_equal(ret < 0, error != NULL);
        if (ret == 0) {
            json_t *json = opts_to_json(opts);
            struct opts *again = opts_new();
            assert_int_equal(opts_from_json(again, json, NULL), 0);
            assert_int_equal(opts_count(again), opts_count(opts));
            json_decref(json);
            opts_free(again);
            good++;
        }
        error_free(error);
        opts_free(opts);
    }
    assert_true(good > 1000); /* or the generator no longer tests anything */
}

/* ---- a whole table into a struct ---- */

struct wanted {
    const char *text;
    uint64_t number, size;
    bool on;
    int word;
};

static void test_a_table_is_read_into_a_struct(void **state)
{
    static const char *const words[] = { "one", "two", NULL };
    static const struct opt_desc table[] = {
        { .name = "text", .type = OPT_STRING, .at = OPT_AT(struct wanted, text) },
        { .name = "number", .type = OPT_NUMBER, .def = "7", .at = OPT_AT(struct wanted, number) },
        { .name = "size", .type = OPT_SIZE, .at = OPT_AT(struct wanted, size) },
        { .name = "on", .type = OPT_BOOL, .def = "on", .at = OPT_AT(struct wanted, on) },
        { .name = "word", .type = OPT_ENUM, .values = words, .at = OPT_AT(struct wanted, word) },
        { .name = "elsewhere", .type = OPT_BOOL },
        { 0 },
    };
    struct wanted wanted = { .size = 99, .word = -1 };
    struct error *error = NULL;
    struct opts *opts = opts_new();

    assert_int_equal(opts_parse(opts, "text=abc,word=two,elsewhere=on", NULL, 0, NULL), 0);
    assert_int_equal(opts_read(opts, table, &wanted, NULL), 0);
    assert_string_equal(wanted.text, "abc");
    assert_int_equal(wanted.number, 7); /* its default */
    assert_int_equal(wanted.size, 99);  /* has none: as it was */
    assert_true(wanted.on);
    assert_int_equal(wanted.word, 1);
    assert_string_equal(opts_unused(opts), "elsewhere");
    opts_set(opts, "size", "1x");
    assert_true(opts_read(opts, table, &wanted, &error) < 0);
    assert_non_null(error);
    error_free(error);
    opts_free(opts);
}

int main(void)
{
    const char *seed = getenv("OPTS_SEED");
    rng = seed ? strtoull(seed, NULL, 0) : 0x9e3779b97f4a7c15;
    printf("OPTS_SEED=%#llx\n", (unsigned long long)rng);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_table_is_read_into_a_struct),
        cmocka_unit_test(parses_pairs),
        cmocka_unit_test(refuses_bad_pairs),
        cmocka_unit_test(last_wins_where_asked),
        cmocka_unit_test(set_and_take),
        cmocka_unit_test(reads_types_and_defaults),
        cmocka_unit_test(refuses_bad_values),
        cmocka_unit_test(json_flattens),
        cmocka_unit_test(json_refuses),
        cmocka_unit_test(json_depth_is_bounded),
        cmocka_unit_test(json_types_must_fit),
        cmocka_unit_test(goes_back_to_json),
        cmocka_unit_test(prints_help),
        cmocka_unit_test(random_option_texts),
        cmocka_unit_test(random_json_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
