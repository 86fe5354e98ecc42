/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Secrets by themselves: base64 with its odd forms, AES-256-CBC against the standard's vectors, the text of an option
 * and what is overwritten in it, life of objects. What QEMU makes of the same options: tests/cli/secret.
 */
#include "unit.h"

#include <base/compiler.h>
#include <errno.h>
#include <objects/object.h>
#include <objects/secret.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Makes the object of this text, which may be a constant. */
static int make(const char *text, struct error **errp)
{
    char *copy = xstrdup(text);
    struct opts *opts = object_parse(copy, errp);
    int err = opts ? object_create(opts, OBJECT_WORDS_VMM, errp) : -EINVAL;
    opts_free(opts);
    free(copy);
    return err;
}

static void check_made(const char *text)
{
    struct error *error = NULL;
    if (make(text, &error) < 0)
        fail_msg("%s: %s", text, error_text(error));
}

static void check_refused(const char *text, const char *words)
{
    struct error *error = NULL;
    assert_true(make(text, &error) < 0);
    assert_string_equal(words, error_text(error));
    error_free(error);
}

static void check_bytes(const char *id, const void *expected, size_t length)
{
    size_t actual;
    const struct secret *secret = secret_find(id, NULL);
    assert_non_null(secret);
    const uint8_t *bytes = secret_bytes(secret, &actual);
    assert_int_equal(length, actual);
    assert_memory_equal(expected, bytes, length);
    assert_int_equal(0, bytes[length]);
}

static int teardown(void **state)
{
    objects_free();
    return 0;
}

/* ---- base64 ---- */

static void base64_forms(void **state)
{
    static const struct {
        const char *text, *bytes;
        size_t length;
    } cases[] = {
        /* RFC 4648, section 10 */
        { "", "", 0 },
        { "Zg==", "f", 1 },
        { "Zm8=", "fo", 2 },
        { "Zm9v", "foo", 3 },
        { "Zm9vYg==", "foob", 4 },
        { "Zm9vYmE=", "fooba", 5 },
        { "Zm9vYmFy", "foobar", 6 },
        { "+/+/", "\xfb\xff\xbf", 3 },
        { "AAAA", "\0\0\0", 3 },
        { "Zm9v\nYmFy\n", "foobar", 6 },
        /* An incomplete group is dropped; what follows padding is read on. */
        { "Zm9vY", "foo", 3 },
        { "Zm9vYm", "foo", 3 },
        { "Zm9vYmF", "foo", 3 },
        { "Zg==Zg==", "ff", 2 },
        { "Zm9v====", "foo\0", 4 },
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char text[128];
        snprintf(text, sizeof(text), "secret,id=s,format=base64,data=%s", cases[i].text);
        check_made(text);
        check_bytes("s", cases[i].bytes, cases[i].length);
        objects_free();
    }
    check_refused("secret,id=s,format=base64,data=Zm9v Zm9v", "Base64 data contains invalid characters");
    check_refused("secret,id=s,format=base64,data=Zm9-", "Base64 data contains invalid characters");
    assert_null(secret_find("s", NULL));
}

/* ---- encryption ---- */

#define NIST_KEY "YD3rEBXKcb4rc67whX13gR81LAc7YQjXLZgQowkU3/Q=" /* SP 800-38A, F.2.5: CBC-AES256 */
#define NIST_IV "AAECAwQFBgcICQoLDA0ODw=="

#define NIST_CIPHER "9YxMBNbl8bp3nqv7X3v71pz8TpZ+24CNZ593e8ZwLH058jNpqdm6z6Uw4mMEIxRhsusF4sOb6fzabBkHjGqdGw=="

/* The last byte of the standard's plain text is 0x10, which reads as the padding of a whole block: three are left. */
static void standard_vector(void **state)
{
    static const uint8_t plain[48] = {
        0x6b, 0xc1, 0xbe, 0xe2, 0x2e, 0x40, 0x9f, 0x96, 0xe9, 0x3d, 0x7e, 0x11, 0x73, 0x93, 0x17, 0x2a,
        0xae, 0x2d, 0x8a, 0x57, 0x1e, 0x03, 0xac, 0x9c, 0x9e, 0xb7, 0x6f, 0xac, 0x45, 0xaf, 0x8e, 0x51,
        0x30, 0xc8, 0x1c, 0x46, 0xa3, 0x5c, 0xe4, 0x11, 0xe5, 0xfb, 0xc1, 0x19, 0x1a, 0x0a, 0x52, 0xef,
    };
    check_made("secret,id=m,format=base64,data=" NIST_KEY);
    check_made("secret,id=s,keyid=m,iv=" NIST_IV ",format=base64,data=" NIST_CIPHER);
    check_bytes("s", plain, sizeof(plain));
}

#define ENCRYPTED "secret,id=s,keyid=m,iv=" NIST_IV ",format=base64,data="

static void padding(void **state)
{
    check_made("secret,id=m,format=base64,data=" NIST_KEY);
    check_refused(ENCRYPTED "2ChOYFo5X9/A4HsIDXLI4Q==",
                  "Incorrect number of padding bytes (17) found on decrypted data");
    check_refused(ENCRYPTED "Zm9v", "Length 3 must be a multiple of block size 16");
    check_refused("secret,id=s,keyid=m,format=base64,data=Zm9v", "IV is required to decrypt secret");
    check_refused("secret,id=s,keyid=m,iv=Zm9v,data=x", "IV should be 16 bytes in length not 3");
    assert_null(secret_find("s", NULL));
    check_made(ENCRYPTED "VaMSu7YmcodUtfP7NnadRDJkUPKrDo6dUrg2dT/Nh90=");
    check_bytes("s", "xxxxxxxxxxxxxxxx", 16);
    objects_free();
    check_made("secret,id=m,format=base64,data=" NIST_KEY);
    check_made(ENCRYPTED "gyhq/klZTOQFolG9sgN1Dw==");
    check_bytes("s", "abc", 3);
    objects_free();
    check_made("secret,id=m,format=base64,data=" NIST_KEY);
    check_made(ENCRYPTED "fpJI5dgpynWT8MVJ2y9bjA==");
    check_bytes("s", "", 0);
    objects_free();
    /* No padding at all, which QEMU takes. */
    check_made("secret,id=m,format=base64,data=" NIST_KEY);
    check_made(ENCRYPTED "D2reqIewaA1s2L4Mdtwjxg==");
    check_bytes("s", "fifteen bytes..\0", 16);
    /* The key's length is checked, and that it is there. */
    check_refused("secret,id=t,keyid=s,iv=" NIST_IV ",data=x", "Key should be 32 bytes in length");
    check_refused("secret,id=t,keyid=nosuch,iv=" NIST_IV ",data=x", "No secret with id 'nosuch'");
}

/* ---- files ---- */

static void files(void **state)
{
    char path[PATH_MAX], text[PATH_MAX + 128];
    static const char block[8192] = "a block";
    test_template(path, false);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    snprintf(text, sizeof(text), "secret,id=empty,file=%s", path);
    check_made(text);
    check_bytes("empty", "", 0);
    /* Over several pages, zeroes and line feeds included. */
    for (int i = 0; i < 5; i++)
        assert_int_equal(sizeof(block), write(fd, block, sizeof(block)));
    assert_int_equal(2, write(fd, "\n", 2));
    snprintf(text, sizeof(text), "secret,id=s,file=%s", path);
    check_made(text);
    size_t length;
    const uint8_t *bytes = secret_bytes(secret_find("s", NULL), &length);
    assert_int_equal(5 * sizeof(block) + 2, length);
    for (int i = 0; i < 5; i++)
        assert_memory_equal(block, bytes + (size_t)i * sizeof(block), sizeof(block));
    assert_memory_equal("\n", bytes + 5 * sizeof(block), 2);
    /* A file without an end, and one that is too large. */
    assert_int_equal(0, ftruncate(fd, (16 << 20) + 1));
    snprintf(text, sizeof(text), "secret,id=t,file=%s", path);
    assert_int_equal(-EFBIG, make(text, NULL));
    assert_int_equal(-EFBIG, make("secret,id=t,file=/dev/zero", NULL));
    assert_null(secret_find("t", NULL));
    close(fd);
    unlink(path);
}

/* ---- the option's text ---- */

static void check_shown(const char *text, const char *shown)
{
    struct error *error = NULL;
    char *copy = xstrdup(text);
    opts_free(object_parse(copy, &error));
    assert_string_equal(shown, copy);
    if (error)
        assert_null(strstr(error_text(error), "geheim"));
    error_free(error);
    free(copy);
}

static void check_all_hidden(const char *text)
{
    char stars[64] = "";
    memset(stars, '*', strlen(text));
    check_shown(text, stars);
}

static void what_is_secret_is_overwritten(void **state)
{
    check_shown("secret,id=s,data=geheim", "secret,id=s,data=******");
    check_shown("secret,data=geheim,id=s", "secret,data=******,id=s");
    check_shown("secret,data=,id=s", "secret,data=,id=s");
    check_shown("secret,data=a,,geheim,id=s", "secret,data=*********,id=s");
    check_shown("secret,data=geheim,,", "secret,data=********");
    check_shown("secret,data=x,geheim", "secret,data=*,******");
    check_shown("secret,data=x,geheim,id=s,data=geheim,more", "secret,data=*,******,id=s,data=******,****");
    check_shown("secret,data=data=geheim", "secret,data=***********");
    check_shown("data=geheim", "data=******");
    check_shown("nosuch,id=s,,data=geheim", "nosuch,id=s,,data=******");
    check_shown("secret,id=s,file=/etc/key,format=base64", "secret,id=s,file=/etc/key,format=base64");
    check_shown("iothread,id=io0,poll-max-ns=5", "iothread,id=io0,poll-max-ns=5");
    check_all_hidden("{\"id\":\"s\",\"data\":\"geheim\"}");
    check_all_hidden("{\"data\":\"geheim\"");
    check_all_hidden("{\"d\\u0061ta\":\"geheim\"}");
    check_shown("{\"qom-type\":\"iothread\"}", "{\"qom-type\":\"iothread\"}");
}

/* ---- life ---- */

static void ids_and_kinds(void **state)
{
    struct error *error = NULL;
    check_made("secret,id=s,data=a,,b");
    check_bytes("s", "a,b", 3);
    assert_string_equal("secret", object_kind_of("s"));
    check_refused("secret,id=s,data=x", "Duplicate ID 's' for object");
    check_refused("secret,id=t,data=x,nosuch=1", "Invalid parameter 'nosuch'");
    check_bytes("s", "a,b", 3);
    assert_null(secret_find("t", &error));
    assert_string_equal("No secret with id 't'", error_text(error));
    error_free(error);
    check_made("secret,id=t,data=on");
    check_made("{\"qom-type\":\"secret\",\"id\":\"u.-_9\",\"data\":\"\\u00e4\"}");
    check_bytes("u.-_9", "\xc3\xa4", 2);
    objects_free();
    assert_null(object_kind_of("s"));
    assert_null(secret_find("u.-_9", NULL));
}

static void text_is_utf8(void **state)
{
    static const struct {
        const char *base64;
        bool valid;
    } cases[] = {
        { "", true },         { "YWJj", true },      { "w6Q=", true },  { "4oKs", true },
        { "8J+YgA==", true }, { "9I+/vw==", true },  { "7Z+/", true }, /* U+10FFFF, U+D7FF */
        { "/w==", false },    { "w6Tk", false },     { "pA==", false }, { "4oI=", false },
        { "8J+Y", false },    { "wIA=", false },     { "4ICA", false }, { "8ICAgA==", false },
        { "7aCA", false },    { "9JCAgA==", false }, { "YQBi", false }, { "+ICAgIA=", false },
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char text[64];
        struct error *error = NULL;
        snprintf(text, sizeof(text), "secret,id=s,format=base64,data=%s", cases[i].base64);
        check_made(text);
        assert_non_null(secret_find("s", NULL));
        const struct secret *secret = secret_find_text("s", &error);
        if (cases[i].valid != (secret != NULL))
            fail_msg("%s: %s", cases[i].base64, error ? error_text(error) : "taken");
        if (error)
            assert_string_equal("Data from secret s is not valid UTF-8", error_text(error));
        error_free(error);
        objects_free();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(base64_forms, teardown),
        cmocka_unit_test_teardown(standard_vector, teardown),
        cmocka_unit_test_teardown(padding, teardown),
        cmocka_unit_test_teardown(files, teardown),
        cmocka_unit_test_teardown(what_is_secret_is_overwritten, teardown),
        cmocka_unit_test_teardown(ids_and_kinds, teardown),
        cmocka_unit_test_teardown(text_is_utf8, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
