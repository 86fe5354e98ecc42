/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * completion: prints a script that has a shell complete img-tool's command lines.
 *
 * All of it comes from the sub-commands' tables of options, and from the drivers'. How a shell wants it is in
 * SHELL.c.
 */
#include "completion.h"
#include "../image.h"

#include <base/compiler.h>
#include <base/error.h>
#include <base/opts.h>
#include <block/node.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- lists of words ---- */

struct words {
    char *text; /* a space between them */
    size_t size;
};

static void add_word(struct words *words, const char *word, size_t length)
{
    size_t space = words->size ? 1 : 0;

    words->text = xrealloc(words->text, words->size + space + length + 1);
    if (space)
        words->text[words->size] = ' ';
    memcpy(words->text + words->size + space, word, length);
    words->size += space + length;
    words->text[words->size] = '\0';
}

static bool has_word(const struct words *words, const char *word)
{
    size_t length = strlen(word);

    for (const char *at = words->text; at && (at = strstr(at, word)); at++) {
        bool begins = at == words->text || at[-1] == ' ';
        if (begins && (at[length] == ' ' || at[length] == '\0'))
            return true;
    }
    return false;
}

static char *taken(struct words *words) { return words->text ? words->text : xstrdup(""); }

/* ---- what tables know ---- */

static void add_format(const struct blk_driver *driver, void *arg)
{
    if (driver->flags & BLK_DRIVER_FORMAT)
        add_word(arg, driver->name, strlen(driver->name));
}

char *completion_formats(void)
{
    struct words words = { 0 };

    blk_driver_each(add_format, &words);
    return taken(&words);
}

char *completion_choices(const struct img_option *option)
{
    struct words words = { 0 };
    const char *argument = option->argument;

    if (!argument)
        return xstrdup("");
    if (!strcmp(argument, "FMT"))
        return completion_formats();
    if (!strcmp(argument, "CACHE")) {
        for (size_t i = 0; blk_cache_mode_name(i); i++)
            add_word(&words, blk_cache_mode_name(i), strlen(blk_cache_mode_name(i)));
        return taken(&words);
    }
    bool optional = argument[0] == '['; /* [=a|b] */
    if (!optional && !strchr(argument, '|'))
        return xstrdup("");
    for (const char *at = argument + (optional ? 2 : 0); *at && *at != ']'; at += *at == '|') {
        size_t length = strcspn(at, "|]");
        add_word(&words, at, length);
        at += length;
    }
    return taken(&words);
}

bool completion_wants_keys(const struct img_option *option, bool *amend)
{
    *amend = option->argument && !strcmp(option->argument, "CHANGES");
    return *amend || (option->argument && !strcmp(option->argument, "OPTIONS"));
}

struct key_search {
    struct words words;
    const char *format;
    bool amend;
};

static void add_keys(const struct blk_driver *driver, void *arg)
{
    struct key_search *search = arg;
    const struct opt_desc *keys = search->amend ? driver->amend_options : driver->create_options;

    if (!(driver->flags & BLK_DRIVER_FORMAT) || (search->format && strcmp(search->format, driver->name) != 0))
        return;
    for (; keys && keys->name; keys++) {
        if (!(keys->flags & OPT_MISSING) && !has_word(&search->words, keys->name))
            add_word(&search->words, keys->name, strlen(keys->name));
    }
}

char *completion_keys(const char *format, bool amend)
{
    struct key_search search = { .format = format, .amend = amend };

    blk_driver_each(add_keys, &search);
    return taken(&search.words);
}

char *completion_summary(const struct img_command *command)
{
    const char *end = strchr(command->help, '.');

    while (end && end[1] && end[1] != ' ' && end[1] != '\n')
        end = strchr(end + 1, '.');
    char *summary = xstrdup(command->help);
    if (end)
        summary[end - command->help] = '\0';
    for (char *at = summary; (at = strchr(at, '\n'));)
        *at = ' ';
    return summary;
}

/* ---- the sub-command ---- */

static const struct img_option options[] = { IMG_HELP_OPTION, { 0 } };

static coroutine_fn int co_run_completion(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*print)(void);
    } shells[] = {
        { "bash", completion_print_bash },
        { "fish", completion_print_fish },
        { "zsh", completion_print_zsh },
    };
    int option = img_getopt(argc, argv, options);

    if (option != -1)
        return option == IMG_OPT_HELP ? img_command_help("completion") : 1;
    if (optind != argc - 1)
        return img_usage_error("Expecting the name of a shell: bash, fish or zsh");
    for (size_t i = 0; i < ARRAY_SIZE(shells); i++) {
        if (!strcmp(argv[optind], shells[i].name)) {
            shells[i].print();
            return 0;
        }
    }
    return img_usage_error("No completion for the shell '%s': it is for bash, fish or zsh", argv[optind]);
}

static struct img_command completion = {
    .name = "completion",
    .usage = "bash|fish|zsh",
    .help = "Prints a script that has a shell complete command lines of img-tool. Packages install it; to try it:\n"
            "'source <(img-tool completion bash)'.",
    .options = options,
    .co_run = co_run_completion,
};
IMG_COMMAND(completion)
