// `firstlight token NAME`: a new token for a worker, and the line that lets a server take it. Neither is kept here.
import { FirstlightError } from '../../errors/errors.ts';
import { makeToken, parseScopes, SCOPES } from '../../serve/token.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';

export async function run(
  context: Context,
  args: string[],
  options: OptionValues,
): Promise<undefined> {
  const [name = ''] = args;
  const may = options.may as string | undefined;
  const scopes = may === undefined ? undefined : parseScopes(may);
  if (may !== undefined && scopes === undefined) {
    throw new FirstlightError('usage', `--may is "${may}"`, {
      hint: `use some of ${SCOPES.join(',')}`,
    });
  }
  const { token, line } = makeToken(name, scopes);
  if (context.json) {
    context.printJson({ token, line });
    return undefined;
  }
  context.print(token);
  context.print(line);
  context.note(
    'The first line is the token: put it into a file for --token-file, it is not shown again.\nThe second goes into the file that the server has as --tokens.',
  );
  return undefined;
}
