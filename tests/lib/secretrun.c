/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a secret holds, for tests: `secretrun [--text] OBJECT... ID` makes the objects and prints the bytes of the
 * secret with this id in hexadecimal. With --text it must be UTF-8. With --wait it then waits for the end of its
 * standard input.
 */
#include <base/error.h>
#include <objects/object.h>
#include <objects/secret.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    struct error *error = NULL;
    bool text = false, wait = false;
    int i = 1;
    error_set_program(argv[0]);
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++) {
        text = text || strcmp(argv[i], "--text") == 0;
        wait = wait || strcmp(argv[i], "--wait") == 0;
    }
    for (; i < argc - 1 && !error; i++) {
        struct opts *opts = object_parse(argv[i], &error);
        if (opts)
            object_create(opts, OBJECT_WORDS_TOOL, &error);
        opts_free(opts);
    }
    const struct secret *secret = NULL;
    if (!error)
        secret = text ? secret_find_text(argv[argc - 1], &error) : secret_find(argv[argc - 1], &error);
    if (secret && wait) {
        printf("ready\n");
        fflush(stdout);
        getchar();
    } else if (secret) {
        size_t length;
        const uint8_t *bytes = secret_bytes(secret, &length);
        for (size_t j = 0; j < length; j++)
            printf("%02x", bytes[j]);
        printf("\n");
    }
    objects_free();
    error_report_free(error);
    return secret ? 0 : 1;
}
