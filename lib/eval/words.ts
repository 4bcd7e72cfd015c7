/** Names of keys. training/names.json has the same: loza-tiny's tokenizer knows each as one token. */
export const nouns: readonly string[] = split(`
  apple river silver castle window garden engine marble copper forest meadow harbor planet
  violin saddle lantern pepper anchor bridge canyon dragon eagle feather glacier hammer island
  jungle kettle lemon mirror needle orchid pencil quartz rabbit sailor tunnel umbrella velvet
  walnut yellow zebra basket candle desert ember falcon granite hollow ivory jacket kitten
  ladder magnet nectar ocean parrot quiver ribbon shadow temple urchin valley willow child city
  father gold hand head heart house king mill road ship army arrow bow bread cave chair clock
  coin corn field fire fish fort gate hill honey leather light lion mast mother mouth night oil
  port rain rice rope sail salt sand star stone store table tent tree wall water whale wind wine
  wool bell boat book brass coast glass goat grass iron
`);

export const adjectives: readonly string[] = split(`
  foreign free full good great high large little long new old public small strong black blue
  busy clean cold common dark deep distant dry early fair famous golden hard heavy honest humble
  late light lost merry mighty modern noble open plain private pure quick quiet rare red rich
  round sad secret slow soft strange warm wet white wide wild wise young brave calm gentle
`);

function split(words: string): string[] {
  return words.trim().split(/\s+/);
}
