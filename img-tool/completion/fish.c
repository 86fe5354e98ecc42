/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The completion of fish: a line for each sub-command and each option. */
#include "completion.h"

#include <stdio.h>
#include <stdlib.h>

/* Between single quotes. */
static void print_quoted(const char *text)
{
    putchar('\'');
    for (; *text; text++) {
        if (*text == '\'' || *text == '\\')
            putchar('\\');
        putchar(*text);
    }
    putchar('\'');
}

/* `-x` is for words alone, `-r` also for the names of files. What an optional argument may be, fish cannot be told. */
static void print_argument(const struct img_option *option)
{
    if (!option->argument || option->argument[0] == '[')
        return;
    bool amend;
    char *words = completion_wants_keys(option, &amend) ? completion_keys(NULL, amend) : completion_choices(option);

    if (*words) {
        printf(" -x -a ");
        print_quoted(words);
    } else {
        printf(" -r");
    }
    free(words);
}

static void print_option(const char *condition, const struct img_option *option, bool with_letter, const char *help)
{
    printf("complete -c img-tool -n '%s'", condition);
    if (with_letter)
        printf(" -s %c", option->value);
    if (option->name)
        printf(" -l %s", option->name);
    print_argument(option);
    printf(" -d ");
    print_quoted(help);
    printf("\n");
}

static void print_table(const char *condition, const struct img_option *options)
{
    const char *help = "";

    for (const struct img_option *option = options; option->value; option++) {
        if (option->help)
            help = option->help;
        print_option(condition, option, img_option_has_letter(options, option), help);
    }
}

void completion_print_fish(void)
{
    char condition[96];

    printf("# Completion of img-tool for fish, made by: img-tool completion fish\n\n");
    print_table("__fish_use_subcommand", img_global_options);
    for (const struct img_command *command = img_commands(); command; command = command->next) {
        char *summary = completion_summary(command);
        printf("\ncomplete -c img-tool -f -n __fish_use_subcommand -a %s -d ", command->name);
        print_quoted(summary);
        printf("\n");
        free(summary);
        snprintf(condition, sizeof(condition), "__fish_seen_subcommand_from %s", command->name);
        print_table(condition, command->options);
    }
}
