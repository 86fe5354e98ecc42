/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* UTF-8: each character, and one U+FFFD for each malformed sequence, as QEMU's JSON has them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <base/compiler.h>
#include <base/utf8.h>
#include <stdlib.h>
#include <string.h>

#define BAD "\xef\xbf\xbd"

static void sequences(void **state)
{
    static const struct {
        const char *text, *clean;
    } cases[] = {
        { "", "" },
        { "plain \x7f\x01", "plain \x7f\x01" },
        { "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80" },
        { "\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbd", "\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbd" },
        { "\xf4\x8f\xbf\xbd", "\xf4\x8f\xbf\xbd" },
        { "a\xff"
          "b",
          "a" BAD "b" },
        { "\xfe\xff", BAD BAD },
        { "\x80\xbf", BAD BAD }, /* continuations of nothing */
        { "\xc3", BAD },         /* cut short */
        { "\xc3\xc3"
          "b",
          BAD BAD "b" },
        { "\xe2\x82", BAD },
        { "\xe2\x82"
          "x",
          BAD "x" },
        { "\xf0\x9f\x98\xc3\xa9", BAD "\xc3\xa9" },
        { "\xc0\x80\xc1\xbf", BAD BAD }, /* longer than they need to be */
        { "\xe0\x9f\xbf\xf0\x8f\xbf\xbf", BAD BAD },
        { "\xed\xa0\x80\xed\xbf\xbf", BAD BAD }, /* surrogates */
        { "\xed\x9f\xbf\xee\x80\x80", "\xed\x9f\xbf\xee\x80\x80" },
        { "\xf4\x90\x80\x80\xf7\xbf\xbf\xbf", BAD BAD }, /* past U+10FFFF */
        { "\xef\xbf\xbe\xef\xbf\xbf\xef\xb7\x90", BAD BAD BAD },
        { "\xf0\x9f\xbf\xbe", BAD },
        { "\xf8\x88\x80\x80\x80"
          "x",
          BAD "x" }, /* of five and six bytes, as once there were */
        { "\xfc\x84\x80\x80\x80\x80"
          "x",
          BAD "x" },
        { "\xfc\x84"
          "x",
          BAD "x" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        /* Of its exact size, so that a sanitizer sees who reads on. */
        char *text = strdup(cases[i].text), *clean = utf8_clean(text);
        print_message("case %zu\n", i);
        assert_string_equal(clean, cases[i].clean);
        free(clean);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(sequences) };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
