NSDictionary *trustKitConfig =
  @{
    kTSKSwizzleNetworkDelegates: @NO,
    kTSKPinnedDomains : @{
        @"www.datatheorem.example" : @{
            kTSKExpirationDate: @"2099-12-01",
            kTSKPublicKeyHashes : @[
                @"HXXQgxueCIU5TTLHob/bPbwcKOKw6DkfsTWYHbxbqTY=",
                @"0SDf3cRToyZJaMsoS17oF72VMavLxj/N7WBNasNuiR8="
            ],
            kTSKEnforcePinning : @NO,
        },
        @"yahoo.com" : @{
            kTSKIncludeSubdomains : @YES,
            kTSKEnforcePinning : [NSNumber numberWithBool:YES],
            kTSKPublicKeyHashes : @[
                @"TQEtdMbmwFgYUifM4LDF+xgEtd0z69mPGmkp014d6ZY=",
                @"rFjc3wG7lTZe43zeYTvPq8k4xdDEutCmIhI5dn4oCeE=",
            ],
        }
    }
  };
