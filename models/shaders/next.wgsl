// The chosen token becomes the next input.
// Expects: step, token. Provides: take(choice).
fn take(choice: u32) {
    token[0] = choice;
    step[0] += 1u;
}
